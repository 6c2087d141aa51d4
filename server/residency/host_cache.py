"""The versions in one engine's host memory. Each is loaded once, and evicted to make room.

`states.py` decides which versions may be evicted. This module evicts them. It works outside the
engine's step.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable

from adapters_registry.content.store import ContentStore
from adapters_registry.errors import RegistryError
from adapters_registry.records.catalog import VersionRecord
from server import metrics
from server.engine.interface import Engine
from server.errors import APIError, Unavailable
from server.errors.mapping import to_api_error
from server.residency.fetches import Fetches
from server.residency.states import Event, State, Tier, VersionEntry, VersionStates

log = logging.getLogger(__name__)

ROOM_POLL_SECONDS = 0.02


class HostCache:
    """Versions that are being loaded, are in memory, or are leaving, by their id."""

    def __init__(
        self,
        engine: Engine,
        content: ContentStore,
        fetches: Fetches,
        states: VersionStates,
        load_seconds: float,
        leave_slot: Callable[[int], None],
        largest_bytes: int | None = None,
    ) -> None:
        """`fetches` gets the files to load.

        `leave_slot` takes the slot from a version that no request uses. It is given the id.
        """
        self._engine, self._content, self._fetches = engine, content, fetches
        self._generation = engine.generation
        self._load_seconds, self._leave_slot = load_seconds, leave_slot
        self._largest_bytes = largest_bytes
        self.states = states
        self.versions: dict[int, VersionRecord] = {}
        self._loads: dict[int, asyncio.Task[None]] = {}
        self._evictions: dict[int, asyncio.Task[None]] = {}

    def entry(self, version: VersionRecord) -> VersionEntry:
        """Return the state of a version that a request wants.

        Raises:
            Unavailable: it could not be loaded a moment ago.
        """
        entry = self.states[version.version_id]
        seconds = entry.retry_at - time.monotonic()
        if entry.state is State.FAILED and seconds > 0:
            raise Unavailable(
                f"{version.public_name} cannot be loaded: {entry.error}",
                retry_after_seconds=int(seconds) + 1,
                param="model",
            )
        self.versions[version.version_id] = version
        return entry

    def tier_of(self, version: VersionRecord) -> Tier:
        """Return where the version is, without regard to slots, which this module does not know."""
        if self.states.has(version.version_id, State.READY, State.DRAINING):
            return Tier.HOST
        return Tier.DISK if self._content.has(version.digest) else Tier.ORIGIN

    async def load(self, version: VersionRecord) -> None:
        """Load a version unless it is in memory. All callers that want it share one load.

        Raises:
            APIError: it cannot be loaded.
        """
        load = self._start(version)
        if load is not None:
            # Shielded: a client that goes away must not cancel what others wait for.
            await asyncio.shield(load)

    def prefetch(self, version: VersionRecord) -> None:
        """Begin to load a version ahead of its use, if no other version has to wait for that."""
        if self.has_spare_room(version):
            self._start(version)

    def has_spare_room(self, version: VersionRecord) -> bool:
        """Return True if a version fits beside those being loaded without evicting a wanted one."""
        coming = [self.states[version_id].num_bytes for version_id in self._loads]
        coming.append(self._num_bytes(version))
        return self.states.to_evict(coming, spare_waiting=True) is not None

    def _num_bytes(self, version: VersionRecord) -> int:
        """Return the most bytes that a version takes in host memory. Files may hold float32."""
        size = version.size_bytes
        return size if self._largest_bytes is None else min(size, self._largest_bytes)

    async def until_loaded(self, version: VersionRecord) -> None:
        """Wait until a running load has ended, successfully or not."""
        if load := self._loads.get(version.version_id):
            await asyncio.wait([load])

    def evict(self, version_id: int, reason: str = "capacity") -> asyncio.Task[None]:
        """Remove a draining version from the engine, as soon as no request there uses it."""
        if version_id not in self._evictions:
            metrics.EVICTIONS.labels("host", reason).inc()
            self._leave_slot(version_id)  # now, because no request may be admitted to it any more
            self._evictions[version_id] = asyncio.create_task(self._evict(version_id))
        return self._evictions[version_id]

    def forget(self, version_id: int) -> None:
        """Forget a version whose weights are not in memory and for which no request waits."""
        if self.states.forget(version_id):
            self.versions.pop(version_id, None)

    def require_same_engine(self) -> None:
        """Raise `Unavailable` if the engine was restarted, as it has lost what was loaded here."""
        if self._engine.generation != self._generation:
            raise Unavailable("the engine was restarted meanwhile; try again")

    def _start(self, version: VersionRecord) -> asyncio.Task[None] | None:
        """Return the version's load, and start it if needed. None if the version is in memory."""
        version_id = version.version_id
        entry = self.states[version_id]
        leaving = version_id in self._evictions
        if entry.state is State.DRAINING and not leaving:
            entry.on(Event.WANTED)
        if entry.state is State.READY:
            return None
        if version_id not in self._loads:
            load = asyncio.create_task(self._load(version))
            self._loads[version_id] = load
            load.add_done_callback(lambda load: self._loaded(version_id, load))
        return self._loads[version_id]

    def _loaded(self, version_id: int, load: asyncio.Task[None]) -> None:
        del self._loads[version_id]
        if not load.cancelled():
            load.exception()  # marks it as seen: perhaps nobody waits for this load

    async def _load(self, version: VersionRecord) -> None:
        if eviction := self._evictions.get(version.version_id):
            await asyncio.wait([eviction])
        self.versions[version.version_id] = version
        entry = self.states[version.version_id]
        entry.num_bytes = self._num_bytes(version)
        entry.on(Event.WANTED)
        async with self._reported(version, entry):
            self.require_same_engine()
            self._content.hold(version.digest)  # only until the weights are in memory
            try:
                async with asyncio.timeout(self._load_seconds):
                    path = await self._fetches.fetch(version.digest)
                await self._make_room(entry)
                self.require_same_engine()
                try:
                    async with asyncio.timeout(self._load_seconds):
                        await self._engine.prepare(version, path)
                except TimeoutError:
                    await self._engine.evict(version)  # or it would arrive later, unknown to us
                    raise
            finally:
                self._content.release(version.digest)
        entry.on(Event.LOADED)
        entry.error, entry.failures = "", 0

    @contextlib.asynccontextmanager
    async def _reported(self, version: VersionRecord, entry: VersionEntry) -> AsyncIterator[None]:
        """Measure a load. Note and log a failure, so that the load isn't repeated at once."""
        tier, started, outcome = self.tier_of(version), time.monotonic(), "failed"
        try:
            yield
            outcome = "ok"
        except asyncio.CancelledError:  # the server ends
            outcome = "cancelled"
            entry.fail("its load was ended", time.monotonic())
            raise
        except Exception as error:
            failure = _as_api_error(version, error, self._load_seconds)
            entry.fail(failure.message, time.monotonic())
            log.error("%s", failure.message)
            raise failure from error
        finally:
            seconds = time.monotonic() - started
            metrics.ADAPTER_LOAD_SECONDS.labels(tier.value, outcome).observe(seconds)

    async def _make_room(self, entry: VersionEntry) -> None:
        """Evict enough versions to make room, and wait until that is possible.

        It always becomes possible: leased versions hold slots, and host memory has room for the
        adapters of all slots.
        """
        while True:
            leaving = self.states.to_evict([entry.num_bytes], spare_waiting=not entry.leases)
            if leaving is not None:
                break
            await asyncio.sleep(ROOM_POLL_SECONDS)
        entry.on(Event.FETCHED)  # at once: from here on it counts
        for version_id in leaving:
            self.states[version_id].on(Event.EVICTED)
        await asyncio.gather(*map(self.evict, leaving))

    async def _evict(self, version_id: int) -> None:
        try:
            # A restarted engine has only what was loaded since, which isn't ours to take away.
            if self._engine.generation == self._generation:
                await self._engine.evict(self.versions[version_id])
        finally:
            del self._evictions[version_id]
            self.states[version_id].on(Event.GONE)
            self.forget(version_id)


def _as_api_error(version: VersionRecord, error: Exception, seconds: float) -> APIError:
    if isinstance(error, APIError):
        return error
    if isinstance(error, RegistryError):
        return to_api_error(error)
    why = (
        f"it took more than {seconds:g} s"
        if isinstance(error, TimeoutError)
        else str(error) or repr(error)
    )
    return Unavailable(f"{version.public_name} cannot be loaded: {why}", param="model")
