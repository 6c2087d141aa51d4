"""The gate's findings: one reason for each cause, with its count and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from adapters_registry.errors import AdapterRejected, Reason

MAX_REASONS = 100
MAX_KEYS = 5
"""Number of keys that a reason names. The others are only counted."""


@dataclass
class Findings:
    """The reasons to refuse an adapter, and the warnings if it is accepted."""

    reasons: list[Reason] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def refuse(self, code: str, message: str, key: str | None = None) -> None:
        """Add a reason with one occurrence."""
        self.add(Reason(code, message, key))

    def refuse_all(
        self, code: str, cause: str, hits: Mapping[str, str], unit: str, remedy: str = ""
    ) -> None:
        """Add one reason for all keys that share a cause. Does nothing if there are none.

        `hits` maps each key to a detail about it, which may be empty.
        """
        if not hits:
            return
        first, detail = next(iter(hits.items()))
        where = first if len(hits) == 1 else f"{len(hits)} {unit}s, such as {first}"
        text = f"{cause} ({where}{f': {detail}' if detail else ''})"
        self.add(counted(code, f"{text}: {remedy}" if remedy else text, list(hits)))

    def add(self, reason: Reason) -> None:
        """Clean a reason's text and add it."""
        if len(self.reasons) < MAX_REASONS:
            keys = [clean(key) for key in reason.keys]
            key = reason.key and clean(reason.key)
            self.reasons.append(Reason(reason.code, clean(reason.message), key, reason.count, keys))

    def raise_if_any(self) -> None:
        """Raise `AdapterRejected` if there is a reason."""
        if self.reasons:
            raise AdapterRejected(self.reasons)


def counted(code: str, message: str, keys: list[str]) -> Reason:
    """Return a reason for all these keys. It names the first few."""
    return Reason(code, message, keys[0], len(keys), keys[:MAX_KEYS])


def clean(text: str) -> str:
    """Return a text cut to a bounded length that can be stored and sent as UTF-8."""
    return text[:500].encode("utf-8", "replace").decode()
