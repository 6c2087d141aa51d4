"""Promotions that wait until every server that serves the adapter has the version in memory."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from adapters_registry.records.catalog import AdapterRecord, AliasRecord, Target
from adapters_registry.records.database import database_time
from adapters_registry.registry import Registry
from adapters_registry.rollout import warm
from adapters_registry.rollout.promotion import WarmPromotion, Warmth
from adapters_registry.rollout.reports import read_warmth
from adapters_registry.rollout.warm import Finished
from server.errors import Conflict
from server.residency.leases import Leases
from server.rollout.reporter import WarmthReporter
from server.workers import Workers

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
ABANDONED_AFTER = timedelta(seconds=10)
"""How long after its time a promotion is carried out by another server than the one asked."""


@dataclass(frozen=True)
class Promoted:
    """How a warm promotion ended."""

    alias: AliasRecord
    servers: dict[str, Warmth]
    waited_seconds: float


class WarmPromotions:
    """The warm promotions that this server was asked for, and those that were left undone."""

    def __init__(
        self, registry: Registry, leases: Leases, reporter: WarmthReporter, workers: Workers
    ) -> None:
        self._registry, self._leases = registry, leases
        self._reporter, self._workers = reporter, workers

    async def promote(
        self,
        tenant: str,
        name: str,
        alias: str,
        targets: Sequence[Target],
        *,
        wait_seconds: float,
        if_revision: int | None = None,
        action: str = warm.POINT,
    ) -> Promoted:
        """Point an alias to versions once servers have loaded them, at the latest after a time.

        Raises:
            Conflict: another change of the alias, or a retirement, came first.
            RegistryError: what `point_alias` raises.
        """
        started = time.monotonic()
        promotion = await self._workers.run(
            self._registry.apply,
            warm.begin,
            tenant,
            name,
            alias,
            targets,
            server=self._registry.server_id,
            wait=timedelta(seconds=wait_seconds),
            if_revision=if_revision,
            action=action,
        )
        finished = None
        while finished is None:
            self._leases.follow(self._registry.catalog)
            await self._reporter.report()
            finished = await self._workers.run(self._finish_if_due, tenant, name, promotion)
            if finished is None:
                await asyncio.sleep(POLL_SECONDS)
        self._leases.follow(self._registry.catalog)
        if finished.alias is None:
            raise Conflict(
                f"{tenant}/{name}@{alias} was not moved: another change came first; the audit "
                "trail says which"
            )
        return Promoted(finished.alias, finished.servers, time.monotonic() - started)

    async def take_over(self) -> None:
        """Carry out promotions whose server has ended before it could. Cheap if there are none."""
        for adapter in self._registry.catalog.warming:
            if await self._workers.run(self._take_over, adapter):
                self._leases.follow(self._registry.catalog)

    def _take_over(self, adapter: AdapterRecord) -> bool:
        promotion = adapter.warming
        if promotion is None:
            return False
        with self._registry.session() as session:
            if database_time(session) < promotion.until + ABANDONED_AFTER:
                return False
        log.info("%s: a promotion is carried out that another server had begun", adapter.id)
        self._registry.apply(warm.finish, adapter.tenant, adapter.name, promotion)
        return True

    def _finish_if_due(self, tenant: str, name: str, promotion: WarmPromotion) -> Finished | None:
        adapter = self._registry.catalog.adapters.get((tenant, name))
        if adapter is not None and adapter.warming == promotion:
            with self._registry.session() as session:
                said = read_warmth(session, promotion.epoch)
                is_over = database_time(session) >= promotion.until
            if not is_over and not all(warmth.is_settled for warmth in said.values()):
                return None
        return self._registry.apply(warm.finish, tenant, name, promotion)
