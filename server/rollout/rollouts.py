"""The parts of rollouts on one server, and what they do regularly."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from datetime import datetime

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from adapters_registry.errors import RegistryError
from adapters_registry.records.database import database_time
from adapters_registry.registry import Registry
from server.residency.leases import Leases
from server.rollout.arm_buffer import ArmBuffer
from server.rollout.judge import Judge
from server.rollout.reporter import WarmthReporter
from server.rollout.warm_promotions import WarmPromotions
from server.workers import Workers

log = logging.getLogger(__name__)

NUM_THREADS = 4
TICK_SECONDS = 0.5
BUSY_SECONDS, IDLE_SECONDS = 2.0, 60.0
"""How often to look for canaries to judge, while an alias is split, and else. A canary whose last
step was not recorded is found at the latest then."""


class Rollouts:
    """What takes part in rollouts on this server."""

    def __init__(
        self,
        registry: Registry,
        leases: Leases,
        clock: Callable[[Session], datetime] = database_time,
        *,
        only_reports: bool = False,
    ) -> None:
        """`clock`: the time by which canaries are judged, which all servers share.

        With `only_reports` it says that the server is there, so that no promotion waits for it,
        and takes no other part: a dedicated server can judge no canary.
        """
        self.clock, self._only_reports = clock, only_reports
        self._workers = Workers("rollouts", NUM_THREADS)
        self._reporter = WarmthReporter(registry, leases)
        self.warm = WarmPromotions(registry, leases, self._reporter, self._workers)
        self.arms = ArmBuffer(registry)
        self.judge = Judge(registry, leases, self.warm, self._workers, clock)
        self._registry, self._judged_at = registry, -math.inf

    async def run(self, interval_seconds: float = TICK_SECONDS) -> None:
        """Take part until cancelled."""
        while True:
            await asyncio.sleep(interval_seconds)
            await self.tick()

    async def tick(self) -> None:
        """Do what is due. A failure is logged, and tried again at the next call."""
        await _tried(self._reporter.report)
        if not self._only_reports:
            await _tried(self.warm.take_over)
            await _tried(self._judge_if_due)

    async def _judge_if_due(self) -> None:
        interval = BUSY_SECONDS if self._registry.catalog.has_splits else IDLE_SECONDS
        if time.monotonic() - self._judged_at >= interval:
            await self.judge.tick()
            self._judged_at = time.monotonic()


async def _tried(work: Callable[[], Awaitable[None]]) -> None:
    try:
        await work()
    except (SQLAlchemyError, RegistryError) as error:
        log.warning("rollouts wait for the registry: %s", error)
