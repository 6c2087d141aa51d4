"""Plans which adapter changes when during a run. Each change is possible at its time. Pure.

Version 0 is the one that is live when the run starts. The server's own numbers are known only then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from loadtest.plan.scenario import Churn

Kind = Literal["registration", "promotion", "rollback", "retirement"]


@dataclass(frozen=True)
class ChurnEvent:
    """One change. `version` is the one that is registered, promoted, rolled back to, or retired."""

    at: float
    kind: Kind
    adapter: str
    version: int


@dataclass
class _History:
    """One adapter during the run: the versions that exist, and where `live` points."""

    versions: list[int] = field(default_factory=lambda: [0])
    live: int = 0
    previous: int | None = None
    num_registered: int = 0

    def apply(self, kind: Kind) -> int | None:
        """Make a change if it is possible now. Returns its version, or None."""
        return getattr(self, f"_{kind}")()  # type: ignore[no-any-return]

    def _registration(self) -> int:
        self.num_registered += 1
        self.versions.append(self.num_registered)
        return self.num_registered

    def _promotion(self) -> int | None:
        newest = self.versions[-1]
        if newest <= self.live:
            return None
        self.previous, self.live = self.live, newest
        return newest

    def _rollback(self) -> int | None:
        if self.previous is None:
            return None
        self.live, self.previous = self.previous, None
        return self.live

    def _retirement(self) -> int | None:
        """Retire the oldest version that isn't live and that no rollback would bring back."""
        for version in self.versions:
            if version not in (self.live, self.previous) and version < self.live:
                self.versions.remove(version)
                return version
        return None


def plan_churn(
    churn: Churn, adapters: list[str], seconds: float, rng: np.random.Generator
) -> tuple[ChurnEvent, ...]:
    """Return all changes of a run, by time. One that no adapter allows at its time is left out."""
    rates: dict[Kind, float] = {
        "registration": churn.registrations_per_minute,
        "promotion": churn.promotions_per_minute,
        "rollback": churn.rollbacks_per_minute,
        "retirement": churn.retirements_per_minute,
    }
    moments: list[tuple[float, Kind]] = []
    for kind, per_minute in rates.items():
        at = rng.exponential(60 / per_minute) if per_minute else seconds
        while at < seconds:
            moments.append((at, kind))
            at += rng.exponential(60 / per_minute)
    histories = {name: _History() for name in adapters}
    events = []
    for at, kind in sorted(moments):
        for name in rng.permutation(adapters).tolist():
            version = histories[name].apply(kind)
            if version is not None:
                events.append(ChurnEvent(at, kind, name, version))
                break
    return tuple(events)
