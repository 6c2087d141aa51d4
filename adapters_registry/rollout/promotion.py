"""A warm promotion as it is kept with its adapter: an alias is to move once servers are ready."""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any


class Warmth(enum.StrEnum):
    """What a server says of a version that a promotion waits for."""

    WARM = "warm"
    """It is in host memory or in a slot."""
    LOADING = "loading"
    FAILED = "failed"
    """It could not be loaded. The server tries again after a pause."""
    UNUSED = "unused"
    """No version of the adapter is in memory, as nobody asks this server for it."""
    NOT_OFFERED = "not offered"
    """It is for another base, or too large for this server."""
    UNHEARD = "unheard"
    """The server has not said anything yet."""

    @property
    def is_settled(self) -> bool:
        """Return whether the promotion need not wait for the server."""
        return self in (Warmth.WARM, Warmth.UNUSED, Warmth.NOT_OFFERED)


@dataclass(frozen=True)
class WarmPromotion:
    """An alias that is to move to these targets."""

    alias: str
    targets: tuple[tuple[int, int], ...]
    """Version numbers, each with its weight in per cent."""
    epoch: int
    """The change that asked for it. Servers report on it under this number."""
    server: str
    """The server that was asked. It loads the version in any case, and moves the alias."""
    until: datetime
    """When the alias moves at the latest."""
    action: str
    """What the audit trail calls the move."""

    @property
    def versions(self) -> frozenset[int]:
        """Return the numbers of the versions."""
        return frozenset(version for version, _ in self.targets)

    @classmethod
    def of(cls, kept: dict[str, Any]) -> WarmPromotion:
        """Return what `to_json` has kept."""
        targets = tuple((version, weight) for version, weight in kept["targets"])
        return cls(**kept | {"targets": targets, "until": datetime.fromisoformat(kept["until"])})

    def to_json(self) -> dict[str, Any]:
        """Return it as the database keeps it."""
        targets = [list(target) for target in self.targets]
        return asdict(self) | {"targets": targets, "until": self.until.isoformat()}
