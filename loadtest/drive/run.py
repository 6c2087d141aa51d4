"""One run from beginning to end: prepare, record what is true, load, and keep everything."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from loadtest.drive.admin import Admin
from loadtest.drive.churn_driver import Churning
from loadtest.drive.preparation import (
    ensure_adapters,
    find_dialect,
    record_golden,
    tenant_keys,
    weights,
)
from loadtest.drive.random_adapters import LlamaShape
from loadtest.drive.request import Exchange
from loadtest.drive.runner import Runner
from loadtest.drive.scraping import Scraper
from loadtest.drive.server_kind import Dialect, Server
from loadtest.drive.versions import Registered, Reloaded
from loadtest.outcome.golden import stale
from loadtest.outcome.run_record import Run
from loadtest.plan.scenario import Scenario
from loadtest.plan.schedule import Schedule, make_schedule


@dataclass(frozen=True)
class Target:
    """The server to measure."""

    url: str
    key: str = ""
    server: Server = Server.OPENAI
    shape: LlamaShape = field(default_factory=LlamaShape)
    """Of its base: what made adapters must fit."""
    weights_dir: Path | None = None
    """Where adapters are made; for vLLM's server, which reads them from there."""


class Observer:
    """What a run tells of itself while it goes; does nothing."""

    def preparing(self, what: str) -> None:
        """A step of the preparation."""

    def started(self, runner: Runner, now: Callable[[], float]) -> None:
        """The load begins."""


async def run(
    scenario: Scenario, target: Target, stop: asyncio.Event, observer: Observer | None = None
) -> Run:
    """Run a scenario; `stop` ends it early, and what there is by then is returned.

    Raises:
        LoadTestError: the server can't be measured.
    """
    observer = observer or Observer()
    result = Run(scenario, target.url, datetime.now(UTC).isoformat(timespec="seconds"))
    keys, schedule = tenant_keys(scenario, target.key), make_schedule(scenario)
    async with (
        Admin.connect(target.url, target.key) as admin,
        Exchange(target.url, scenario.limits) as exchange,
    ):
        observer.preparing("asking the server what it is")
        dialect = await find_dialect(scenario, admin, keys, target.server)
        result.base = dialect.base
        with weights(target.shape, target.weights_dir) as place:
            live = {}
            if target.server is Server.OPENAI:
                live = await ensure_adapters(scenario, admin, place, observer.preparing)

            async def golden(*models: str) -> None:
                if scenario.truth.share:
                    await record_golden(
                        scenario, exchange, result.truth, dialect, target.key, list(models)
                    )

            observer.preparing("recording golden answers")
            await golden(dialect.base, *_all_adapters(scenario))
            churning = Churning(
                scenario.made_adapters(),
                place,
                Registered(admin, place, live)
                if live
                else Reloaded(admin, place, scenario.churn.in_place),
                exchange.now,
                golden,
                result.churn,
                result.truth.changes,
            )
            await _load(
                schedule, scenario, admin, exchange, keys, dialect, churning, result, stop, observer
            )
    return result


def _all_adapters(scenario: Scenario) -> list[str]:
    parts = [scenario.adapters, *(t.adapters for t in scenario.tenants if t.adapters)]
    return list(dict.fromkeys(name for part in parts for name in part.all_names))


async def _load(
    schedule: Schedule,
    scenario: Scenario,
    admin: Admin,
    exchange: Exchange,
    keys: dict[str, str],
    dialect: Dialect,
    churning: Churning,
    result: Run,
    stop: asyncio.Event,
    observer: Observer,
) -> None:
    await asyncio.to_thread(churning.prepare, schedule.churn)
    runner = Runner(scenario, exchange, result.truth, keys, dialect)
    result.outcomes = runner.outcomes
    scraper = Scraper(admin, exchange.now, result.pages)
    with _no_long_pauses():
        exchange.start_clock()
        cpu = time.process_time()
        observer.started(runner, exchange.now)
        beside = [
            asyncio.create_task(churning.run(schedule.churn)),
            asyncio.create_task(scraper.run()),
        ]
        try:
            result.complete = await runner.run(schedule, stop)
        finally:
            result.seconds = exchange.now()
            result.cpu_share = (time.process_time() - cpu) / result.seconds
            for task in beside:
                task.cancel()
            endings = await asyncio.gather(*beside, return_exceptions=True)
    for ending in endings:
        if isinstance(ending, Exception):
            raise ending
    stale(result.outcomes, result.truth.changes)


@contextlib.contextmanager
def _no_long_pauses() -> Iterator[None]:
    """Pauses in which nothing is sent: the garbage collector looks at what is new only, and the
    thread that draws the progress hands over after half a millisecond."""
    thresholds, switch_seconds = gc.get_threshold(), sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 1_000_000)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(switch_seconds)
        gc.unfreeze()
