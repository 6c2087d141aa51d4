"""What a version of vLLM has of that which we use: `python -m tests.vllm_next.snapshot USED OUT`.

It runs in the environment of that version, imports it, and writes OUT as JSON: for each part the
names with a description, such as a signature. Two such files are compared by `changes`.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.vllm_next.used import METRIC, Used

MISSING = "missing"
PARSERS = ("launchers.cli_args", "common.cli_args")
"""Where vLLM's versions make the parser of their command line."""
Part = dict[str, str]
Snapshot = dict[str, Part]
SYMBOLS, MEMBERS, FIELDS = "Symbols", "Members of classes", "Fields"
FLAGS, VARIABLES, METRICS = "Flags", "Environment variables", "Metrics"


def snapshot(used: Used) -> Snapshot:
    """Return what the vLLM of this environment has."""
    found = {symbol: find(symbol) for symbol in used.symbols}
    classes = {symbol: kind for symbol, kind in found.items() if isinstance(kind, type)}
    return {
        SYMBOLS: {symbol: describe(value) for symbol, value in found.items()},
        MEMBERS: {
            f"{symbol}.{name}": describe(inspect.getattr_static(kind, name))
            for symbol, kind in classes.items()
            for name in used.names
            if name in dir(kind) and not (name == "__init__" and _fields(kind))
        },
        FIELDS: _fields_beside(list(classes.values())),
        FLAGS: _part(flags),
        VARIABLES: _part(_variables),
        METRICS: _part(_metrics),
    }


def describe(value: Any) -> str:
    """Return a signature, or the type of what can't be called, without addresses in memory."""
    if isinstance(value, Missing):
        return f"{MISSING}: {value.reason}"
    if isinstance(value, classmethod | staticmethod):
        value = value.__func__
    if inspect.ismodule(value) or not callable(value) or _fields(value):
        return type(value).__name__
    try:
        return re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(value)))
    except (TypeError, ValueError):
        return type(value).__name__


@dataclasses.dataclass(frozen=True)
class Missing:
    """Stands for what can't be loaded."""

    reason: str


def find(symbol: str) -> Any:
    """Return what a symbol names, in the first of its places that has it, or `Missing`."""
    reasons = []
    for place in symbol.split("|"):
        module, _, path = place.partition(":")
        try:
            value: Any = importlib.import_module(module)
            for name in path.split("."):
                value = _attribute(value, name)
        except Exception as error:  # whatever a module of another version raises
            reasons += f"{type(error).__name__}: {error}".splitlines()[:1]
        else:
            return value
    return Missing("; ".join(reasons))


def _attribute(owner: Any, name: str) -> Any:
    """Return an attribute, which of a package may be a module that isn't imported yet."""
    if inspect.ismodule(owner) and not hasattr(owner, name):
        return importlib.import_module(f"{owner.__name__}.{name}")
    return getattr(owner, name)


def _fields_beside(classes: list[type]) -> Part:
    """Return the fields of all classes with fields in the modules of `classes`, and of vLLM's
    configuration: requests and answers stand beside each other.
    """
    names = {kind.__module__ for kind in classes if _fields(kind)} | {"vllm.config"}
    modules = [module for name in sorted(names) if (module := sys.modules.get(name))]
    return {
        f"{kind.__module__}:{kind.__name__}.{field}": described
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and kind.__module__.startswith(module.__name__)
        for field, described in _fields(kind).items()
    }


def _fields(kind: Any) -> Part:
    """Return the fields of a pydantic model, a dataclass or a msgspec structure."""
    if not isinstance(kind, type):
        return {}
    if isinstance(models := getattr(kind, "model_fields", None), dict):
        return {name: inspect.formatannotation(field.annotation) for name, field in models.items()}
    if dataclasses.is_dataclass(kind):
        return {f.name: inspect.formatannotation(f.type) for f in dataclasses.fields(kind)}
    return dict.fromkeys(getattr(kind, "__struct_fields__", ()), "")


def flags() -> Part:
    """Return the flags of vLLM's command line."""
    make_arg_parser = find(
        "|".join(f"vllm.entrypoints.{place}:make_arg_parser" for place in PARSERS)
    )
    parsers = importlib.import_module("vllm.utils.argparse_utils")
    parser = make_arg_parser(parsers.FlexibleArgumentParser())
    return {flag: "" for action in parser._actions for flag in action.option_strings}


def _variables() -> Part:
    envs = importlib.import_module("vllm.envs")
    return dict.fromkeys(envs.environment_variables, "")


def _metrics() -> Part:
    package = importlib.util.find_spec("vllm")
    assert package is not None
    assert package.submodule_search_locations is not None
    files = Path(package.submodule_search_locations[0]).rglob("*.py")
    quoted = re.compile(rf"[\"']({METRIC.pattern})[\"']")
    return {name: "" for file in files for name in quoted.findall(file.read_text())}


def _part(read: Callable[[], Part]) -> Part:
    """Return a part, or the reason for which this version doesn't have it."""
    try:
        return dict(sorted(read().items()))
    except Exception as error:  # whatever a module of another version raises
        return {f"(unreadable: {type(error).__name__}: {error})": MISSING}


def main() -> None:
    """Write the snapshot of this environment."""
    used, out = map(Path, sys.argv[1:])
    out.write_text(json.dumps(snapshot(Used.read(used)), indent=1))


if __name__ == "__main__":
    main()
