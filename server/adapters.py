"""Leases: a request holds its version from before the first token until after the last byte."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from adapters_registry.catalog import VersionRecord
from adapters_registry.content import ContentStore
from server import metrics
from server.engine.interface import Engine


class Adapters:
    """Loads versions into the engine when a request names them, once however many ask."""

    def __init__(self, engine: Engine, content: ContentStore) -> None:
        self._engine = engine
        self._content = content
        self._loads: dict[int, asyncio.Task[None]] = {}
        self._generation = engine.generation

    @asynccontextmanager
    async def lease(self, version: VersionRecord) -> AsyncIterator[None]:
        """Hold a version for one request, loading it first where needed.

        Raises:
            Unavailable: the engine isn't ready, or refuses the version.
        """
        with metrics.LEASES.labels(metrics.adapter_label(version.adapter_id)).track_inprogress():
            await self._ensure_loaded(version)
            yield

    async def _ensure_loaded(self, version: VersionRecord) -> None:
        if self._generation != self._engine.generation:
            self._generation = self._engine.generation
            self._loads.clear()
        load = self._loads.get(version.engine_id)
        if load is None or (load.done() and (load.cancelled() or load.exception())):
            load = asyncio.create_task(self._load(version))
            self._loads[version.engine_id] = load
        # Shielded: a client that goes away must not cancel the load that others wait for.
        await asyncio.shield(load)

    async def _load(self, version: VersionRecord) -> None:
        started, outcome = time.perf_counter(), "failed"
        try:
            await self._engine.load(version, self._content.path(version.digest))
            outcome = "ok"
        finally:
            seconds = time.perf_counter() - started
            metrics.ADAPTER_LOAD_SECONDS.labels("disk", outcome).observe(seconds)
