"""What came of the soak's requests and changes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

MAX_SHOWN = 20


@dataclass
class Tally:
    """Counts, and the text of what went wrong."""

    right: int = 0
    left: int = 0
    """Streams that the client left on purpose."""
    refused: Counter[str] = field(default_factory=Counter)
    """429s that a quota promises, by tenant."""
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    """Requests by what they asked."""
    tiers: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    failed_changes: list[str] = field(default_factory=list)
    admitted: Counter[str] = field(default_factory=Counter)
    """Requests that were not refused, by tenant."""
    tokens: Counter[str] = field(default_factory=Counter)
    """Tokens of prompts and answers, by tenant."""

    def faults(self) -> list[str]:
        """Return the first of all that went wrong, for people."""
        return [*self.wrong, *self.failed, *self.failed_changes][:MAX_SHOWN]
