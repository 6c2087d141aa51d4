"""What the gate found: one reason for each cause, with how often it holds and what mends it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from adapters_registry.errors import AdapterRejected, Reason

MAX_REASONS = 100
MAX_KEYS = 5
"""Keys that a reason names; it counts the others."""


@dataclass
class Findings:
    """The reasons to refuse an adapter, and the warnings where it is accepted."""

    reasons: list[Reason] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def refuse(self, code: str, message: str, key: str | None = None) -> None:
        """Add a reason that holds once."""
        self.add(Reason(code, message, key))

    def refuse_all(
        self, code: str, cause: str, hits: Mapping[str, str], unit: str, remedy: str = ""
    ) -> None:
        """Add one reason for all keys that share a cause; no key, no reason.

        `hits` maps each key to what there is to say of it alone, which may be nothing.
        """
        if not hits:
            return
        first, detail = next(iter(hits.items()))
        where = first if len(hits) == 1 else f"{len(hits)} {unit}s, such as {first}"
        text = f"{cause} ({where}{f': {detail}' if detail else ''})"
        self.add(counted(code, f"{text}: {remedy}" if remedy else text, list(hits)))

    def add(self, reason: Reason) -> None:
        """Add a reason, its text cleaned."""
        if len(self.reasons) < MAX_REASONS:
            keys = [clean(key) for key in reason.keys]
            key = reason.key and clean(reason.key)
            self.reasons.append(Reason(reason.code, clean(reason.message), key, reason.count, keys))

    def raise_if_any(self) -> None:
        """Raise `AdapterRejected` if there is a reason."""
        if self.reasons:
            raise AdapterRejected(self.reasons)


def counted(code: str, message: str, keys: list[str]) -> Reason:
    """Return the reason that holds for all these keys, of which it names the first few."""
    return Reason(code, message, keys[0], len(keys), keys[:MAX_KEYS])


def clean(text: str) -> str:
    """Text that can be stored and sent as UTF-8, of bounded length."""
    return text[:500].encode("utf-8", "replace").decode()
