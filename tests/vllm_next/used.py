"""What our code uses of vLLM, read from its source: nothing is imported."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

METRIC = re.compile(r"\bvllm:\w+")


@dataclass(frozen=True)
class Used:
    """What would be missed if an upgrade moved it."""

    symbols: tuple[str, ...]
    """`module:name`, and `module:name.attribute` where the code reads an attribute of it."""
    names: tuple[str, ...]
    """Every name that the code reads from any object or gives to a function: among them are the
    methods of vLLM's classes that it calls or overrides."""
    metrics: tuple[str, ...]
    """vLLM's metrics that the server, the chart or the load tester name."""

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, file: Path) -> Used:
        found = json.loads(file.read_text())
        return cls(**{name: tuple(values) for name, values in found.items()})


def used_by(code: Path, texts: Iterable[Path] = ()) -> Used:
    """Return what the Python files below `code` use, with the metrics in the files of `texts`."""
    symbols: set[str] = set()
    names: set[str] = set()
    for file in sorted(code.rglob("*.py")):
        tree = ast.parse(file.read_text())
        symbols |= set(_symbols(tree))
        names |= set(_names(tree))
    metrics = {name for file in texts for name in METRIC.findall(file.read_text())}
    return Used(*(tuple(sorted(each)) for each in (symbols, names, metrics)))


def _symbols(tree: ast.Module) -> Iterator[str]:
    """Yield what is imported from vLLM, also within functions, and the attributes read from it.

    What a file imports from two places under one name, for two versions, is `first|second`.
    """
    here: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
            for alias in node.names:
                places = here.setdefault(alias.asname or alias.name, [])
                if (symbol := f"{node.module}:{alias.name}") not in places:
                    places.append(symbol)
    yield from ("|".join(places) for places in here.values())
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in here:
                yield "|".join(f"{place}.{attribute}" for place in here[name])


def _names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
