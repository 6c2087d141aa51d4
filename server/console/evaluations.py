"""What is recorded of an adapter's versions, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapters_registry.records.catalog import VersionRecord

CHECKED = "checked"
"""What the gate found out is recorded under this key, beside what the client sent."""
MAX_FACTS = 60
MAX_CHARACTERS = 200


@dataclass(frozen=True)
class Fact:
    """One recorded value of several versions."""

    name: str
    values: tuple[str, ...]
    """In the order of the versions; empty where a version has none."""
    changes: tuple[str, ...]
    """How a number differs from that of the version before."""

    @property
    def differs(self) -> bool:
        """Whether two versions have different values."""
        return len(set(self.values)) > 1


def compare(versions: Sequence[VersionRecord]) -> list[Fact]:
    """Return what clients recorded of versions, a fact a row; those that differ come first."""
    flat = [dict(flatten(_sent(version.metadata))) for version in versions]
    names = dict.fromkeys(name for facts in flat for name in facts)
    facts = [_fact(name, [facts.get(name) for facts in flat]) for name in names]
    return sorted(facts, key=lambda fact: not fact.differs)[:MAX_FACTS]


def gate_report(version: VersionRecord) -> list[tuple[str, str]]:
    """Return what the gate found out about a version, by name."""
    checked = version.metadata.get(CHECKED)
    if not isinstance(checked, dict):
        return []
    return [(name, text(value)) for name, value in flatten(checked)][:MAX_FACTS]


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested objects, named as `evaluation.exact_match`."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"[:MAX_CHARACTERS], value


def text(value: Any) -> str:
    """Return a recorded value as text that fits a cell of a table."""
    match value:
        case None | [] | {}:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case list():
            return ", ".join(text(item) for item in value)[:MAX_CHARACTERS]
    return str(value)[:MAX_CHARACTERS]


def _sent(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metadata.items() if name != CHECKED}


def _fact(name: str, values: Sequence[Any]) -> Fact:
    changes = [""] * len(values)
    for index in range(1, len(values)):
        before, now = values[index - 1], values[index]
        if _is_number(before) and _is_number(now) and before != now:
            changes[index] = f"{now - before:+.4g}"
    return Fact(name, tuple(map(text, values)), tuple(changes))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
