"""Carries out the planned changes through the admin API while the load runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from loadtest.drive.preparation import Weights
from loadtest.drive.versions import Versions
from loadtest.errors import LoadTestError
from loadtest.outcome.golden import NEVER, Change
from loadtest.outcome.run_record import ChurnRecord
from loadtest.plan.churn_plan import ChurnEvent
from loadtest.plan.scenario import Adapters


@dataclass
class ChurnDriver:
    """Changes one server's adapters, one change at a time."""

    adapters: dict[str, Adapters]
    place: Weights
    versions: Versions
    now: Callable[[], float]
    on_registered: Callable[[str], Awaitable[None]]
    """Called with the name by which a new version can be asked for, before it is live."""
    records: list[ChurnRecord]
    changes: list[Change]
    """Changes of what a name points to. One in flight, or failed, has `acknowledged = NEVER`."""

    def prepare(self, events: tuple[ChurnEvent, ...]) -> None:
        """Make the weights of all registrations now: later it would disturb the measurement."""
        for event in events:
            if event.kind == "registration":
                self.place.of(event.adapter, event.version, self.adapters[event.adapter])

    async def run(self, events: tuple[ChurnEvent, ...]) -> None:
        """Carry out each change when it is due, and record it. A change that fails ends nothing."""
        for event in events:
            await asyncio.sleep(max(0.0, event.at - self.now()))
            began, error = self.now(), ""
            try:
                await self._apply(event, began)
            except LoadTestError as failure:
                error = str(failure)
            self.records.append(
                ChurnRecord(
                    event.at, began, self.now(), event.kind, event.adapter, event.version, error
                )
            )

    async def _apply(self, event: ChurnEvent, began: float) -> None:
        part = self.adapters[event.adapter]
        concerned = event.adapter, event.version, part
        if event.kind == "registration":
            await self.on_registered(await self.versions.register(*concerned))
        elif event.kind == "retirement":
            await self.versions.retire(*concerned)
        else:
            move = self.versions
            version = move.public_name(*concerned)
            change = Change(event.adapter, version, began, NEVER)
            self.changes.append(change)
            await (move.promote if event.kind == "promotion" else move.roll_back)(*concerned)
            self.changes[-1] = replace(change, acknowledged=self.now())
