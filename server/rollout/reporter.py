"""Tells the other servers which versions this one has warm."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from adapters_registry.registry import Registry
from adapters_registry.rollout.promotion import Warmth
from adapters_registry.rollout.reports import report_warmth
from server.residency.leases import Leases


class WarmthReporter:
    """Reports for one server. `server/process/presence.py` says that the server is there."""

    def __init__(self, registry: Registry, leases: Leases) -> None:
        self._registry, self._leases = registry, leases
        self._said: Mapping[int, Warmth] = {}

    async def report(self) -> None:
        """Load what promotions wait for, and report if there is news.

        Raises:
            SQLAlchemyError: the database does not answer. Call it again later.
        """
        warming = self._leases.keep_warm()
        if warming != self._said:
            await asyncio.to_thread(self._write, warming)
            self._said = warming

    def _write(self, warming: Mapping[int, Warmth]) -> None:
        with self._registry.session() as session:
            report_warmth(session, self._registry.server_id, warming)
