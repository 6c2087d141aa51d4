"""The gate: decides whether a registered version may serve, from its files and by trying it."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from adapters_registry.errors import AdapterRejected, Reason
from adapters_registry.records.catalog import VersionRecord
from adapters_registry.registry import Registry
from server.engine.interface import Engine
from server.errors import NotLoadable, Unavailable
from server.gate.smoke_test import try_out
from server.residency.leases import Leases

log = logging.getLogger(__name__)

MAX_CANARIES = 2
"""Canaries at a time: each takes a slot that requests would have."""
RETRY_SECONDS = 0.25
MAX_DEATHS = 2
"""How often the engine may die beside a version before the version is to blame."""


class Gate:
    """Checks versions, each once however many wait for its verdict."""

    def __init__(self, registry: Registry, engine: Engine, leases: Leases) -> None:
        self._registry = registry
        self._engine = engine
        self._adapters = leases
        self._checks: dict[int, asyncio.Task[VersionRecord]] = {}
        self._canaries = asyncio.Semaphore(MAX_CANARIES)
        self._suspects = asyncio.Lock()

    def start(self, version: VersionRecord) -> None:
        """Begin to check a pending version, or one whose check was cut off; once at a time."""
        if version.version_id in self._checks:
            return
        check = asyncio.create_task(self._check(version))
        self._checks[version.version_id] = check
        check.add_done_callback(partial(self._end, version))

    def _end(self, version: VersionRecord, check: asyncio.Task[VersionRecord]) -> None:
        del self._checks[version.version_id]
        if not check.cancelled() and (error := check.exception()):
            log.error("checking %s was cut off", version.public_name, exc_info=error)

    async def verdict(self, version: VersionRecord) -> VersionRecord:
        """Wait for a check that runs; a version that isn't being checked comes back as it is."""
        check = self._checks.get(version.version_id)
        # Shielded: a client that goes away must not cut off the check.
        return await asyncio.shield(check) if check else version

    async def _check(self, version: VersionRecord) -> VersionRecord:
        """Files first, then the canary; cut off, it stays `checking` until the next start."""
        try:
            facts = await asyncio.to_thread(self._registry.check_files, version)
        except AdapterRejected as rejection:
            reasons = rejection.reasons
        else:
            reasons = await self._try_out(version)
            if not reasons:
                accepted = await asyncio.to_thread(self._registry.accept, version, facts)
                self._adapters.follow(self._registry.catalog)  # it may have been promoted
                return accepted
        return await asyncio.to_thread(self._registry.reject, version, reasons)

    async def _try_out(self, version: VersionRecord) -> list[Reason]:
        """The canary's reasons, as soon as the engine can say; its faults aren't the version's.

        A version beside which the engine died is tried again with no other canary of its kind, and
        then to blame if the engine dies again: one that kills must not be tried for ever.
        """
        num_deaths = 0
        while num_deaths < MAX_DEATHS:
            await self._until_ready()
            async with self._suspects if num_deaths else self._canaries:
                generation = self._engine.generation
                try:
                    return await self._canary(version)
                except Unavailable as error:
                    log.warning("the canary of %s is put off: %s", version.public_name, error)
            await asyncio.sleep(RETRY_SECONDS)
            num_deaths += not self._is_up(generation)
        message = "the engine died each time this adapter was tried"
        return [Reason("canary_engine_died", message)]

    async def _canary(self, version: VersionRecord) -> list[Reason]:
        path = self._registry.content.path(version.digest)
        try:
            async with self._adapters.lease(version):
                reasons = await try_out(self._engine, version, path)
        except NotLoadable as error:
            return [Reason("canary_not_loadable", error.message)]
        if reasons:
            await self._adapters.drain(version)
        return reasons

    async def _until_ready(self) -> None:
        while not self._is_up(self._engine.generation):
            await asyncio.sleep(RETRY_SECONDS)

    def _is_up(self, generation: int) -> bool:
        """Whether the engine answers, and is the one of that generation."""
        try:
            self._engine.require_ready()
        except Unavailable:
            return False
        return self._engine.generation == generation
