"""One run from beginning to end: prepare, record golden answers, load, and keep everything."""

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
from loadtest.drive.churn_driver import ChurnDriver
from loadtest.drive.http_client import HttpClient
from loadtest.drive.preparation import (
    ensure_adapters,
    find_dialect,
    record_golden,
    tenant_keys,
    weights,
)
from loadtest.drive.random_adapters import LlamaShape
from loadtest.drive.request import RequestSender
from loadtest.drive.runner import Runner
from loadtest.drive.scraping import Scraper
from loadtest.drive.server_kind import Dialect, ServerKind
from loadtest.drive.versions import RegistryVersions, ReloadedVersions
from loadtest.outcome.golden import stale
from loadtest.outcome.run_record import Run
from loadtest.plan.scenario import Scenario
from loadtest.plan.schedule import Schedule, make_schedule


@dataclass(frozen=True)
class Target:
    """The server to measure."""

    url: str
    key: str = ""
    server: ServerKind = ServerKind.OPENAI
    shape: LlamaShape = field(default_factory=LlamaShape)
    """The shape of its base, which random adapters must fit."""
    weights_dir: Path | None = None
    """Where random adapters are written. vLLM's own server reads them from there."""


class Observer:
    """Is told how a run goes. This one does nothing."""

    def preparing(self, what: str) -> None:
        """Note a step of the preparation."""

    def started(self, runner: Runner, now: Callable[[], float]) -> None:
        """Note that the load begins."""


async def run(
    scenario: Scenario, target: Target, stop: asyncio.Event, observer: Observer | None = None
) -> Run:
    """Run a scenario. `stop` ends it early. Returns everything that was recorded by then.

    Raises:
        LoadTestError: the server can't be measured.
    """
    observer = observer or Observer()
    result = Run(scenario, target.url, datetime.now(UTC).isoformat(timespec="seconds"))
    keys, schedule = tenant_keys(scenario, target.key), make_schedule(scenario)
    async with (
        HttpClient.connect(target.url, target.key) as client,
        RequestSender(target.url, scenario.limits) as sender,
    ):
        admin = Admin(client)
        observer.preparing("asking the server what it is")
        dialect = await find_dialect(scenario, admin, keys, target.server)
        result.base = dialect.base
        with weights(target.shape, target.weights_dir) as place:
            live = {}
            if target.server is ServerKind.OPENAI:
                live = await ensure_adapters(scenario, admin, place, observer.preparing)

            async def golden(*models: str) -> None:
                if scenario.truth.share:
                    await record_golden(
                        scenario, sender, result.truth, dialect, target.key, list(models)
                    )

            observer.preparing("recording golden answers")
            await golden(dialect.base, *_all_adapters(scenario))
            driver = ChurnDriver(
                scenario.made_adapters(),
                place,
                RegistryVersions(admin, place, live)
                if live
                else ReloadedVersions(admin, place, scenario.churn.in_place),
                sender.now,
                golden,
                result.churn,
                result.truth.changes,
            )
            await _load(
                schedule, scenario, admin, sender, keys, dialect, driver, result, stop, observer
            )
    return result


def _all_adapters(scenario: Scenario) -> list[str]:
    parts = [scenario.adapters, *(t.adapters for t in scenario.tenants if t.adapters)]
    return list(dict.fromkeys(name for part in parts for name in part.all_names))


async def _load(
    schedule: Schedule,
    scenario: Scenario,
    admin: Admin,
    sender: RequestSender,
    keys: dict[str, str],
    dialect: Dialect,
    driver: ChurnDriver,
    result: Run,
    stop: asyncio.Event,
    observer: Observer,
) -> None:
    await asyncio.to_thread(driver.prepare, schedule.churn)
    runner = Runner(scenario, sender, result.truth, keys, dialect)
    result.outcomes = runner.outcomes
    scraper = Scraper(admin, sender.now, result.pages)
    with _no_long_pauses():
        sender.start_clock()
        cpu = time.process_time()
        observer.started(runner, sender.now)
        beside = [
            asyncio.create_task(driver.run(schedule.churn)),
            asyncio.create_task(scraper.run()),
        ]
        try:
            result.complete = await runner.run(schedule, stop)
        finally:
            result.seconds = sender.now()
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
    """Avoid pauses in which nothing is sent.

    The garbage collector looks at new objects only, and the thread that draws the progress hands
    over after half a millisecond.
    """
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
