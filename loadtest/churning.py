"""Carries out the planned changes through the admin API while the load runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from loadtest.admin import Admin
from loadtest.churn import ChurnEvent
from loadtest.errors import LoadTestError
from loadtest.preparation import Weights
from loadtest.scenario import Adapters
from loadtest.truth import Change


@dataclass(frozen=True)
class ChurnRecord:
    """A change as it went; times are seconds from the start of the run."""

    at: float
    began: float
    done: float
    kind: str
    adapter: str
    version: int | None
    error: str = ""


@dataclass
class Churning:
    """Changes one server's adapters, one change at a time."""

    admin: Admin
    adapters: dict[str, Adapters]
    place: Weights
    live: dict[str, int]
    """The server's number of each adapter's first live version."""
    now: Callable[[], float]
    on_registered: Callable[[str], Awaitable[None]]
    """Called with `name@number` before it is live."""
    records: list[ChurnRecord] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    _numbers: dict[tuple[str, int], int] = field(default_factory=dict)

    def prepare(self, events: tuple[ChurnEvent, ...]) -> None:
        """Make the weights of all registrations, which would disturb the measurement."""
        for event in events:
            if event.kind == "registration":
                self.place.of(event.adapter, event.version, self.adapters[event.adapter])

    async def run(self, events: tuple[ChurnEvent, ...]) -> None:
        """Do what is due; a change that fails is recorded, and so are those that need it."""
        for event in events:
            await asyncio.sleep(max(0.0, event.at - self.now()))
            began, error = self.now(), ""
            try:
                await self._apply(event, began)
            except LoadTestError as failure:
                error = str(failure)
            number = self._number(event.adapter, event.version)
            self.records.append(
                ChurnRecord(event.at, began, self.now(), event.kind, event.adapter, number, error)
            )

    def _number(self, adapter: str, version: int) -> int | None:
        return self.live.get(adapter) if version == 0 else self._numbers.get((adapter, version))

    async def _apply(self, event: ChurnEvent, began: float) -> None:
        part, name = self.adapters[event.adapter], event.adapter
        if event.kind == "registration":
            if name not in self.live:
                raise LoadTestError("the server has no admin API, or not this adapter")
            files = self.place.of(name, event.version, part)
            registered = await self.admin.register(part.tenant, name, files, promote=False)
            self._numbers[name, event.version] = registered
            await self.on_registered(f"{name}@{registered}")
            return
        number = self._number(name, event.version)
        if number is None:
            raise LoadTestError(f"{name} has no such version: its registration failed")
        if event.kind == "promotion":
            await self.admin.promote(part.tenant, name, number)
        elif event.kind == "rollback":
            await self.admin.roll_back(part.tenant, name)
        else:
            await self.admin.retire(part.tenant, name, number)
            return
        self.changes.append(Change(name, f"{part.tenant}/{name}@{number}", began, self.now()))
