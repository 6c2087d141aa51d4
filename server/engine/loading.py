"""Calls to the engine's workers that move adapters. Workers answer between two steps."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from adapters_registry.records.catalog import VersionRecord
from server.engine.interface import EngineContents
from server.engine.worker.extension import PREPARE, WorkerReply
from server.errors import NotLoadable, Unavailable

log = logging.getLogger(__name__)

POLL_SECONDS = 0.01

_WAIT = frozenset({WorkerReply.IN_USE, WorkerReply.FILLING})
"""Answers to `loraplex_install` after which the call is repeated."""


class AdapterLoading(ABC):
    """The part of an `Engine` (see `interface`) that moves adapters in and out."""

    @abstractmethod
    async def call_workers(self, method: str, *arguments: object) -> list[Any]:
        """Return the answers of all workers.

        Raises:
            Unavailable: the engine doesn't answer.
        """

    @abstractmethod
    def ids_in_use(self) -> set[int]:
        """Return the ids of the versions that unfinished requests use, as the server knows them."""

    async def prepare(self, version: VersionRecord, path: Path) -> None:
        """Read a version's weights into host memory while the engine runs on.

        Raises:
            NotLoadable: they can't be read, or the engine refuses them. Nothing is kept then.
            Unavailable: the engine doesn't run.
        """
        version_id, name = version.version_id, version.public_name
        # An engine of one process answers when the adapter is read (see `worker.early_reads`).
        answers = await self.call_workers(PREPARE, version_id, name, str(path))
        while WorkerReply.READING in answers:
            await asyncio.sleep(POLL_SECONDS)
            answers = await self.call_workers("loraplex_prepared", version_id)
        wrong = [answer for answer in answers if answer != WorkerReply.READY]
        if wrong:
            await self.evict(version)
            log.error("%s could not be loaded: %s", name, wrong[0])
            raise NotLoadable(f"{name} could not be loaded: {wrong[0]}", param="model")

    async def resident(self) -> EngineContents:
        """Return what the first worker holds. The others hold their parts of the same versions.

        Raises:
            Unavailable: the engine doesn't run.
        """
        answers = await self.call_workers("loraplex_residency")
        return EngineContents(**answers[0])

    async def install(
        self, version: VersionRecord, keep: Callable[[], Iterable[int]] = tuple
    ) -> None:
        """Give a prepared version a free slot, or the slot of a version that no request uses.

        Waits until there is one. Each time it looks for a slot, it calls `keep`, which returns the
        ids of the versions whose slots must not be taken. An exception from `keep` ends the wait.

        Raises:
            Unavailable: the engine isn't ready, or the version isn't prepared.
        """
        answers = [str(WorkerReply.IN_USE)]
        while not _WAIT.isdisjoint(answers):
            kept = sorted({*keep(), *self.ids_in_use()})
            answers = await self.call_workers("loraplex_install", version.version_id, kept)
            if WorkerReply.UNKNOWN in answers:
                raise Unavailable(f"{version.public_name} isn't in the engine's memory; try again")
            if not _WAIT.isdisjoint(answers):
                await asyncio.sleep(POLL_SECONDS)

    async def evict(self, version: VersionRecord) -> None:
        """Wait until no request in the engine uses a version, then free its slot and host memory.

        The server knows the requests that wait in the engine. The worker knows those that have just
        ended but are still in its batch. Does nothing if the engine doesn't run.
        """
        with suppress(Unavailable):
            answers = [str(WorkerReply.IN_USE)]
            while WorkerReply.IN_USE in answers:
                while version.version_id in self.ids_in_use():
                    await asyncio.sleep(POLL_SECONDS)
                answers = await self.call_workers("loraplex_evict", version.version_id)
                if WorkerReply.IN_USE in answers:
                    await asyncio.sleep(POLL_SECONDS)
