"""The tree of errors that is drawn at the top of an errors.py has every class, at its place."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("server", "adapters_registry", "training", "loadtest")
MODULES = [
    file
    for package in PACKAGES
    for pattern in ("*errors.py", "errors/__init__.py")
    for file in (ROOT / package).rglob(pattern)
]
LARGEST_WITHOUT_A_TREE = 3
_DRAWN = re.compile(r"^((?:[│ ]   )*)(?:├──|└──) (\w+)", re.MULTILINE)


def declared(file: Path) -> dict[str, str]:
    """Return the class that each error class of a module inherits from."""
    tree = ast.parse(file.read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.bases]
    return {c.name: ast.unparse(c.bases[0]) for c in classes}


def drawn(file: Path) -> dict[str, str]:
    """Return the same, as the docstring of the module draws it."""
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
    before, *_ = re.split(r"^├──|^└──", docstring, maxsplit=1, flags=re.MULTILINE)
    above, found = [before.split()[-1]], {}
    for indent, name in _DRAWN.findall(docstring):
        depth = len(indent) // 4 + 1
        above[depth:] = [name]
        found[name] = above[depth - 1]
    return found


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_drawn_tree_is_the_tree_of_the_classes(file: Path) -> None:
    classes = declared(file)
    inner = {name: base for name, base in classes.items() if base in classes}
    if drawn(file) or len(classes) > LARGEST_WITHOUT_A_TREE:
        assert drawn(file) == inner


def test_the_trees_are_there() -> None:
    assert sum(bool(drawn(file)) for file in MODULES) >= 2
