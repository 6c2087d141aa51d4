"""Compares a best fit, as it is served, with its original, which the server cannot run."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from server.bundled_base import BundledBaseMissing, bundled_base_directory, ensure_bundled_base
from server.cli.client import CallFailed, send
from server.cli.console import say
from server.cli.training.evaluation import open_candidate


def difference_from_original(
    version: dict[str, Any], source: str, base: Path | None
) -> dict[str, Any] | None:
    """Return how far a fit's log-probabilities are from its original's, on built-in texts.

    The original is run here, so its directory and the base must be on this machine. If they aren't,
    or one of the two cannot be asked, the reason is printed, and None is returned.

    `version` is the fit, as the server has answered. If no `base` is named, the bundled one is
    used, where it is the server's.
    """
    from training.errors import TrainingError
    from training.evaluation.probes import compare_on_probes

    try:
        if not Path(source).is_dir():
            raise TrainingError("the original is not in a directory on this machine")
        base = base or _bundled_if_served()
        served = open_candidate(f"served:{version['model']}", base)
        difference = compare_on_probes(served, open_candidate(source, base), base)
    except (TrainingError, CallFailed) as error:
        say(f"the fit's log-probabilities were not compared with the original's: {error}")
        return None
    return asdict(difference)


def _bundled_if_served() -> Path:
    """Return the bundled base.

    Raises:
        CallFailed: the server does not say which base it has.
        TrainingError: it has another one, or the bundled base is not installed here.
    """
    from training.errors import TrainingError

    served = send("GET", "/v1/models").json()["data"][0]["root"]
    if served == bundled_base_directory().name:
        with suppress(BundledBaseMissing):
            return ensure_bundled_base()
    raise TrainingError("name the directory of the server's base with --base")
