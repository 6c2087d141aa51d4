"""Load on two replicas, by the project's own load tester, while something happens to them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from loadtest.drive.run import Observer, Target
from loadtest.drive.run import run as run_load
from loadtest.drive.runner import Runner
from loadtest.measurements.measured_server import Generation, MeasuredServer
from loadtest.outcome.request_outcome import UNFINISHED, WRONG, Outcome
from loadtest.outcome.run_record import Run
from loadtest.plan.scenario import (
    Adapters,
    Arrivals,
    Closed,
    Fixed,
    Limits,
    Requests,
    Scenario,
    Uniform,
)
from tests.benchmarks.fleet import Fleet

NUM_ADAPTERS = 8
"""Of each proxy: with the hash, a replica's host memory holds its share of them, but not all."""
CLIENTS = 4
"""Of each proxy, where something happens under load."""
GENEROUS = Limits(stall_seconds=120, request_seconds=240, drain_seconds=240)
"""Cores are shared: slow is no failure here."""
FOREVER_SECONDS = 3600
LAST_SECONDS = 60
"""Requests that were sent no longer before the end may be cut off by it."""


def scenario(prefix: str, arrivals: Arrivals, seconds: float, **adapters: object) -> Scenario:
    """Short answers by adapters of a prefix, asked for by Zipf's law unless told otherwise."""
    asked = {"count": NUM_ADAPTERS, "popularity": "zipf"} | adapters
    return Scenario(
        question="What do two replicas behind a proxy do?",
        duration_seconds=seconds,
        arrivals=arrivals,
        adapters=Adapters.model_validate({"prefix": prefix} | asked),
        requests=Requests(
            input=Fixed(kind="fixed", tokens=24), output=Uniform(kind="uniform", min=8, max=48)
        ),
        limits=GENEROUS,
    )


async def loaded(url: str, key: str, asked: Scenario) -> Run:
    """Run a scenario to its end."""
    return await run_load(asked, Target(url, key), asyncio.Event())


@dataclass
class Load(Observer):
    """What runs through one proxy."""

    run: Run | None = None
    runner: Runner | None = None
    now: Callable[[], float] = float

    def started(self, runner: Runner, now: Callable[[], float]) -> None:
        self.runner, self.now = runner, now

    @property
    def outcomes(self) -> list[Outcome]:
        """Of the requests that the end of the measurement didn't cut off."""
        assert self.run is not None
        late = self.run.seconds - LAST_SECONDS
        return [o for o in self.run.outcomes if o.status != UNFINISHED or o.sent < late]


@dataclass
class Loads:
    """What runs through both proxies."""

    each: list[Load] = field(default_factory=list)

    def in_flight(self) -> int:
        """Requests open now."""
        return sum(load.runner.in_flight for load in self.each if load.runner)

    def times(self) -> list[float]:
        """Now, by each one's clock."""
        return [load.now() for load in self.each]

    def failed(self) -> list[Outcome]:
        """All that failed."""
        return [o for load in self.each for o in load.outcomes if o.is_error]

    def failed_since(self, times: list[float]) -> int:
        """How many of those that were sent at these times or later failed."""
        pairs = zip(self.each, times, strict=True)
        return sum(o.is_error and o.sent >= at for load, at in pairs for o in load.outcomes)

    def counts(self) -> dict[str, int | str]:
        """What every phase reports."""
        failed = self.failed()
        kinds = Counter(o.status for o in failed)
        counts: dict[str, int | str] = {
            "requests": sum(len(load.outcomes) for load in self.each),
            "failed": len(failed),
            "by another adapter, or of mixed versions": sum(kinds[kind] for kind in WRONG),
        }
        if failed:
            counts["kinds of failures"] = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
            counts["first failure"] = failed[0].detail[:200]
        return counts


@asynccontextmanager
async def under_load(fleet: Fleet) -> AsyncIterator[Loads]:
    """Clients that ask on and on through both proxies, each its own adapters, until the end."""
    loads, stop, running = Loads(), asyncio.Event(), []
    for prefix, proxy in (("envoy", fleet.envoy), ("haproxy", fleet.haproxy)):
        load = Load()
        closed = Closed(process="closed", concurrency=CLIENTS)
        asked = scenario(prefix, closed, FOREVER_SECONDS)
        running.append(_keep(load, proxy.url, fleet.key, asked, stop))
        loads.each.append(load)
    tasks = [asyncio.create_task(run) for run in running]
    try:
        while not all(load.runner for load in loads.each):
            done, _ = await asyncio.wait(tasks, timeout=0.1)
            for task in done:
                task.result()
        yield loads
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def _keep(load: Load, url: str, key: str, asked: Scenario, stop: asyncio.Event) -> None:
    load.run = await run_load(asked, Target(url, key), stop, load)


async def find_homes(fleet: Fleet, url: str, prefix: str) -> dict[str, int]:
    """Which replica answers each adapter where nothing else runs, by the adapter's id."""
    before = await asyncio.to_thread(fleet.answered)
    homes: dict[str, int] = {}
    async with MeasuredServer.connect(url, fleet.key) as server:
        for number in range(NUM_ADAPTERS):
            name = f"{prefix}-{number}"
            await server.generate(Generation(name, [1000 + number], 1))
            after = await asyncio.to_thread(fleet.answered)
            found = f"default/{name}"
            gained = [a[found] - b[found] for a, b in zip(after, before, strict=True)]
            homes[found] = gained.index(1)
            before = after
    return homes


def share_at_home(
    homes: dict[str, int], before: list[Counter[str]], after: list[Counter[str]]
) -> tuple[int, int]:
    """Of the requests answered meanwhile: how many by their adapter's home, and all."""
    gained = [a - b for a, b in zip(after, before, strict=True)]
    at_home = sum(gained[home][adapter] for adapter, home in homes.items())
    return at_home, sum(counts[adapter] for counts in gained for adapter in homes)
