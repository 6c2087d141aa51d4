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
from server.errors import Unavailable
from server.workers import Workers

MAX_FETCHES = 8


class Adapters:
    """Loads versions into the engine when a request names them, once however many ask.

    The engine reads a version's files again whenever it has evicted it, and dies if they are gone:
    what one generation of the engine was told to load is held for as long as that lives.
    """

    def __init__(self, engine: Engine, content: ContentStore) -> None:
        self._engine = engine
        self._content = content
        self._fetches = Workers("fetch", MAX_FETCHES)
        self._loads: dict[int, asyncio.Task[None]] = {}
        self._held: dict[int, str] = {}
        self._generation = engine.generation

    @asynccontextmanager
    async def lease(self, version: VersionRecord) -> AsyncIterator[None]:
        """Hold a version for one request, loading it first where needed.

        Raises:
            Unavailable: the engine isn't ready, or refuses the version.
            RegistryError: its content can't be had; which, says `ContentStore.fetch`.
        """
        with metrics.LEASES.labels(metrics.adapter_label(version.adapter_id)).track_inprogress():
            await self._ensure_loaded(version)
            yield

    async def _ensure_loaded(self, version: VersionRecord) -> None:
        if self._generation != self._engine.generation:
            self._begin_generation()
        load = self._loads.get(version.engine_id)
        if load is None or (load.done() and (load.cancelled() or load.exception())):
            load = asyncio.create_task(self._load(version))
            self._loads[version.engine_id] = load
        # Shielded: a client that goes away must not cancel the load that others wait for.
        await asyncio.shield(load)

    def _begin_generation(self) -> None:
        self._generation = self._engine.generation
        self._loads.clear()
        for digest in self._held.values():
            self._content.release(digest)
        self._held.clear()

    async def _load(self, version: VersionRecord) -> None:
        started, outcome, generation = time.perf_counter(), "failed", self._generation
        digest = version.digest
        tier = "disk" if self._content.path(digest).is_dir() else "origin"
        if version.engine_id not in self._held:
            self._content.hold(digest)
            self._held[version.engine_id] = digest
        try:
            path = await self._fetches.run(self._content.fetch, digest)
            if generation != self._engine.generation:
                raise Unavailable("the engine was restarted meanwhile; try again")
            await self._engine.load(version, path)
            outcome = "ok"
        finally:
            seconds = time.perf_counter() - started
            metrics.ADAPTER_LOAD_SECONDS.labels(tier, outcome).observe(seconds)
