"""Tells the other servers that this one is there, and which versions it has warm."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Mapping

from sqlalchemy.exc import SQLAlchemyError

from adapters_registry.registry import Registry
from adapters_registry.rollout import reports
from adapters_registry.rollout.promotion import Warmth
from server.residency.leases import Leases

HEARTBEAT_SECONDS = 10.0
"""How often a server reports that has nothing new to say. See `reports.SILENT_FOR`."""


class Reporter:
    """Reports for one server."""

    def __init__(self, registry: Registry, leases: Leases) -> None:
        self._registry, self._leases = registry, leases
        self._said: Mapping[int, Warmth] = {}
        self._at = -math.inf

    async def report(self) -> None:
        """Load what promotions wait for, and report if there is news or the last report is old.

        Raises:
            SQLAlchemyError: the database does not answer. Call it again later.
        """
        warming = self._leases.keep_warm()
        if warming != self._said or time.monotonic() - self._at >= HEARTBEAT_SECONDS:
            await asyncio.to_thread(self._write, warming)
            self._said, self._at = warming, time.monotonic()

    async def leave(self) -> None:
        """Report that this server ends, so that no promotion waits for it."""
        with contextlib.suppress(SQLAlchemyError):  # then the others wait until it counts as gone
            await asyncio.to_thread(self._remove)

    def _write(self, warming: Mapping[int, Warmth]) -> None:
        with self._registry.session() as session:
            reports.report(session, self._registry.server_id, warming)

    def _remove(self) -> None:
        with self._registry.session() as session:
            reports.leave(session, self._registry.server_id)
