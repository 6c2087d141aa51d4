"""What differs between two snapshots, and the report of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.vllm_next.snapshot import MEMBERS, METRICS, MISSING, SYMBOLS, Snapshot
from tests.vllm_next.used import Used

LONGEST = 160
"""Of longer descriptions the report has the part that differs."""


@dataclass(frozen=True)
class Change:
    """One thing that came, went, or is another; `before` or `after` is None if it isn't there."""

    part: str
    name: str
    before: str | None
    after: str | None

    @property
    def is_gone(self) -> bool:
        return _is_there(self.before) and not _is_there(self.after)


def _is_there(described: str | None) -> bool:
    return described is not None and not described.startswith(MISSING)


def changes(before: Snapshot, after: Snapshot) -> list[Change]:
    """Return the differences, part by part."""
    found: list[Change] = []
    for part in before:
        old, new = before[part], after.get(part, {})
        found += [
            Change(part, name, old.get(name), new.get(name))
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
        ]
    return found


def faults(found: Iterable[Change], used: Used) -> list[Change]:
    """Return the changes by which something that we use is gone."""
    gone = [change for change in found if change.is_gone]
    symbols = {change.name for change in gone if change.part == SYMBOLS}
    metrics = {name.removesuffix("_total") for name in used.metrics}
    return [
        change
        for change in gone
        if change.name in symbols
        or (change.part == MEMBERS and change.name.rpartition(".")[0] not in symbols)
        or (change.part == METRICS and change.name in metrics)
    ]


def moved_to(name: str, package: Path, sources: Mapping[Path, str]) -> list[str]:
    """Return the modules of a package that define the last part of a symbol's name."""
    last = re.escape(re.split(r"[:.]", name)[-1])
    begin = rf"\s*(?:async def|def|class) {last}\b|{last}(?::[^=]+)? = "
    defined = re.compile(rf"^(?:{begin})", re.MULTILINE)
    found = [file for file, text in sources.items() if defined.search(text)]
    found += [file for file in sources if file.stem == last]
    return [
        ".".join((package.name, *file.relative_to(package).with_suffix("").parts)) for file in found
    ]


def table(part: str, found: Iterable[Change]) -> list[str]:
    """Return a part of the report: a heading and a row for each change, or nothing."""
    rows = [
        f"| `{change.name}` | {' | '.join(map(_cell, cut(change.before, change.after)))} |"
        for change in found
        if change.part == part
    ]
    if not rows:
        return []
    return ["", f"## {part}", "", "| name | before | after |", "|---|---|---|", *rows]


def cut(before: str | None, after: str | None) -> tuple[str | None, str | None]:
    """Return two descriptions from where they differ, if one of them is too long to be read."""
    if not before or not after or max(len(before), len(after)) <= LONGEST:
        return before, after
    pairs = enumerate(zip(before, after, strict=False))
    differs = next((i for i, (old, new) in pairs if old != new), min(len(before), len(after)))
    begin = max(differs - LONGEST // 4, 0)
    return _from(before, begin), _from(after, begin)


def _from(text: str, begin: int) -> str:
    shown = text[begin : begin + LONGEST]
    return ("..." if begin else "") + shown + ("..." if begin + LONGEST < len(text) else "")


def _cell(described: str | None) -> str:
    if described is None:
        return "-"
    return f"`{described}`".replace("|", "\\|") if described else "there"
