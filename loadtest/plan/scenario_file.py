"""Reads scenarios from TOML files, lists them, and adjusts them to another load."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from loadtest.errors import LoadTestError
from loadtest.plan.scenario import Scenario

SCENARIOS_DIR = Path(__file__).parents[1] / "scenarios"


def load_scenario(name: str) -> Scenario:
    """Read a scenario file, or one that comes with the project, by its name.

    Raises:
        LoadTestError: there is none, or it can't be used. The message says which key and why.
    """
    path = Path(name)
    if path.suffix != ".toml":
        path = SCENARIOS_DIR / f"{name.replace('-', '_')}.toml"
    if not path.is_file():
        raise LoadTestError(
            f"there is no scenario {name}; there are {', '.join(shipped_scenarios())}"
        )
    try:
        raw = tomllib.loads(path.read_text())
        _resolve_paths(raw, path.parent)
        return Scenario.model_validate(raw)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LoadTestError(f"{path}: {error}") from error
    except ValidationError as error:
        raise LoadTestError(f"{path}: {_explain(error)}") from error


def adjusted(
    scenario: Scenario,
    *,
    load: float | None = None,
    seed: int | None = None,
    seconds: float | None = None,
) -> Scenario:
    """Return the scenario with another load (requests a second, or clients), seed or duration.

    Raises:
        LoadTestError: the result isn't a valid scenario.
    """
    changes: dict[str, Any] = {}
    if load is not None:
        changes |= _scaled(scenario, load / nominal_load(scenario))
    if seed is not None:
        changes["seed"] = seed
    if seconds is not None:
        changes["duration_seconds"] = seconds
    try:
        return Scenario.model_validate({**dict(scenario), **changes})
    except ValidationError as error:
        raise LoadTestError(_explain(error)) from error


def nominal_load(scenario: Scenario) -> float:
    """Return the requests a second (or clients, or a trace's speed) of all tenants together."""
    parts = [t.arrivals or scenario.arrivals for t in scenario.tenants] or [scenario.arrivals]
    return sum(float(getattr(part, _LOAD_OF[part.process])) for part in parts)


_LOAD_OF = {
    "poisson": "rate",
    "gamma": "rate",
    "ramp": "to_rate",
    "trace": "speed",
    "closed": "concurrency",
}


def _scaled(scenario: Scenario, factor: float) -> dict[str, Any]:
    def scale(arrivals: Any) -> dict[str, Any]:
        values: dict[str, Any] = dict(arrivals)
        key = _LOAD_OF[arrivals.process]
        value = values[key] * factor
        values[key] = max(1, round(value)) if key == "concurrency" else value
        if arrivals.process == "ramp":
            values["rate"] *= factor
        return values

    tenants = [
        {**dict(t), "arrivals": scale(t.arrivals)} if t.arrivals else t for t in scenario.tenants
    ]
    return {"arrivals": scale(scenario.arrivals), "tenants": tenants}


def shipped_scenarios() -> list[str]:
    """Return the names of the scenario files that come with the project."""
    return sorted(file.stem.replace("_", "-") for file in SCENARIOS_DIR.glob("*.toml"))


def _resolve_paths(part: Any, parent: Path) -> None:
    """Resolve the paths of files, which are relative to the scenario that names them."""
    for child in part.values() if isinstance(part, dict) else part:
        if isinstance(child, dict | list):
            _resolve_paths(child, parent)
    if isinstance(part, dict):
        for key in {"file", "key_file"} & part.keys():
            part[key] = parent / str(part[key])


def _explain(error: ValidationError) -> str:
    reasons = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"])
        reasons.append(f"{place}: {problem['msg']}" if place else problem["msg"])
    return "; ".join(reasons)
