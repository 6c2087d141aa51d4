"""What is asked of the engine's workers about adapters; they answer between two steps."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any

from adapters_registry.catalog import VersionRecord
from server.engine.worker import Answer
from server.errors import NotLoadable, Unavailable

log = logging.getLogger(__name__)

POLL_SECONDS = 0.01


class AdapterLoading(ABC):
    """The part of an `Engine` (see `interface`) that moves adapters in and out."""

    @abstractmethod
    async def call_workers(self, method: str, *arguments: object) -> list[Any]:
        """Each worker's answer; raise `Unavailable` if there is none."""

    @abstractmethod
    def has_requests_on(self, engine_id: int) -> bool:
        """Whether the engine has unfinished requests on a version."""

    async def prepare(self, version: VersionRecord, path: Path) -> None:
        """Read a version's weights into host memory while the engine runs on.

        Raises:
            NotLoadable: they can't be read, or aren't fit to be used; nothing is kept then.
            Unavailable: the engine isn't there, or died.
        """
        engine_id, name = version.engine_id, version.public_name
        await self.call_workers("loraplex_prepare", engine_id, name, str(path))
        while Answer.READING in (
            answers := await self.call_workers("loraplex_prepared", engine_id)
        ):
            await asyncio.sleep(POLL_SECONDS)
        wrong = [answer for answer in answers if answer != Answer.READY]
        if wrong:
            await self.evict(version)
            log.error("%s could not be loaded: %s", name, wrong[0])
            raise NotLoadable(f"{name} could not be loaded: {wrong[0]}", param="model")

    async def install(self, version: VersionRecord, victim_id: int | None = None) -> None:
        """Give a prepared version the slot of another (by its engine id), or a free one.

        Waits for the requests that still use the victim; it stays in host memory.

        Raises:
            Unavailable: the engine isn't ready, the version isn't prepared, or no slot is free.
        """
        engine_id = version.engine_id
        answers = await self._once_unused(victim_id, "loraplex_install", engine_id, victim_id)
        if Answer.UNKNOWN in answers:
            raise Unavailable(f"{version.public_name} isn't in the engine's memory; try again")
        if Answer.FULL in answers:
            raise Unavailable("all slots are taken; try again")

    async def evict(self, version: VersionRecord) -> None:
        """Free a version's slot and host memory, once no request in the engine uses it.

        Nothing to do where the engine is gone.
        """
        with suppress(Unavailable):
            await self._once_unused(version.engine_id, "loraplex_evict", version.engine_id)

    async def _once_unused(self, used_id: int | None, method: str, *arguments: object) -> list[Any]:
        """Call as soon as no request uses a version.

        The server knows of requests that wait in the engine, the worker of those that have just
        ended but are still in its batch.
        """
        while True:
            if used_id is None or not self.has_requests_on(used_id):
                answers = await self.call_workers(method, *arguments)
                if Answer.IN_USE not in answers:
                    return answers
            await asyncio.sleep(POLL_SECONDS)
