"""Requests lease versions in the slots of one engine. Versions without a slot wait for one.

`slot_scheduler.py` decides which version gets a slot. This module carries the decisions out, with
the help of `host_cache.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from adapters_registry.content.store import ContentStore
from adapters_registry.records.catalog import VersionRecord
from server import metrics
from server.engine.interface import Engine
from server.errors import SlotTimeout, Unavailable
from server.request_log.record import end_stage
from server.residency.fetches import Fetches
from server.residency.host_cache import HostCache
from server.residency.slot_scheduler import Grant, SlotScheduler, SlotTicket
from server.residency.states import Event, State, Tier, VersionEntry, VersionStates, Wait


@dataclass(frozen=True)
class Limits:
    """Bounds on versions, requests and waiting times."""

    slots: int
    max_running_per_tenant: int
    """Requests of one tenant that a version in a slot admits at a time."""
    host: int
    quantum_seconds: float
    linger_seconds: float
    slot_wait_seconds: float
    load_seconds: float
    reserve_seconds: float = 0.0
    """How long after another tenant's last request a tenant must leave one slot free for it."""
    host_bytes: float = math.inf
    """The most bytes of adapters in host memory. `host` bounds their number."""
    preempt_seconds: float = math.inf
    """How long a tenant below its share of the slots waits until requests of one above its share,
    which keep a slot from it, are ended."""
    largest_bytes: int | None = None
    """The most bytes that one adapter takes, at the largest rank. None if that is not known."""


OWN_WAIT_FACTOR = 10
"""A request that waits only for its own tenant's requests waits this many times as long."""

Install = asyncio.Task[None]


class SlotLease:
    """One request's hold on a slot."""

    def __init__(self, on_end: Callable[[], None]) -> None:
        self._on_end: Callable[[], None] | None = on_end
        self._on_preempted: Callable[[], None] | None = None
        self._is_preempted = False

    def on_preempted(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the request should end, so that another gets the slot."""
        self._on_preempted = callback
        if self._is_preempted:
            callback()

    def preempt(self) -> None:
        """Ask the request to end. May be called twice."""
        if not self._is_preempted:
            self._is_preempted = True
            if self._on_preempted:
                self._on_preempted()

    def end(self) -> None:
        """End the hold. May be called twice."""
        on_end, self._on_end = self._on_end, None
        if on_end:
            on_end()


class EngineSlots:
    """The slots of one engine. A restarted engine gets new `EngineSlots`."""

    def __init__(
        self, engine: Engine, content: ContentStore, fetches: Fetches, limits: Limits
    ) -> None:
        """`fetches` gets the files to load."""
        self._engine, self._limits = engine, limits
        self.slots = SlotScheduler(
            limits.slots,
            limits.quantum_seconds,
            limits.linger_seconds,
            limits.max_running_per_tenant,
            limits.reserve_seconds,
            limits.preempt_seconds,
        )
        residency = VersionStates(limits.host, self.slots.holds, limits.host_bytes)
        self.host = HostCache(
            engine,
            content,
            fetches,
            residency,
            limits.load_seconds,
            self._leave_slot,
            largest_bytes=limits.largest_bytes,
        )
        self._installs: dict[int, Install] = {}
        self._waiting: dict[SlotTicket, asyncio.Future[Install]] = {}
        self._leases: dict[SlotTicket, SlotLease] = {}
        self._num_loading = 0
        self._timer: asyncio.TimerHandle | None = None

    def num_waiting(self) -> dict[Wait, int]:
        """Return how many requests wait here, by what they wait for."""
        for_own = sum(map(self.slots.waits_for_own, self._waiting))
        return {
            Wait.SLOT: len(self._waiting) - for_own,
            Wait.SHARE: for_own,
            Wait.LOAD: self._num_loading,
        }

    def tier_of(self, version: VersionRecord) -> Tier:
        """Return where a request finds the version now."""
        install = self._installs.get(version.version_id)
        if install and install.done() and not install.cancelled() and not install.exception():
            return Tier.SLOT
        return self.host.tier_of(version)

    @contextlib.asynccontextmanager
    async def lease(self, version: VersionRecord, tenant: str) -> AsyncIterator[SlotLease]:
        """Keep a version in a slot for one request of a tenant. Load it first if needed.

        Raises:
            APIError: it cannot be loaded, or no slot became free in time.
        """
        entry = self.host.entry(version)
        entry.used_at = time.monotonic()
        ticket = self.slots.ask(version.version_id, entry.used_at, tenant)
        granted: asyncio.Future[Install] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = granted
        entry.waiting += 1
        lease = self._leases[ticket] = SlotLease(lambda: self._end_lease(ticket, entry))
        try:
            self.host.prefetch(version)
            self._advance()
            install = await self._granted(granted, version, tenant)
            end_stage("slot")
            await self._installed(install)
            end_stage("load")
            yield lease
        finally:
            lease.end()

    async def prefetch(self, version: VersionRecord) -> None:
        """Load a version into host memory, unless that would evict a version that requests want."""
        self.host.entry(version)
        if self.host.has_spare_room(version):
            await self.host.load(version)

    def keep(self, version: VersionRecord) -> State:
        """Keep a version in host memory, and begin to load it. Returns its state now.

        Requests for other versions may still evict it, as the last one. Call this again to load it
        then.
        """
        entry = self.host.states[version.version_id]
        entry.kept = True
        if entry.state is not State.READY:
            with contextlib.suppress(Unavailable):  # it failed a moment ago, and has to wait
                self.host.entry(version)
                self.host.prefetch(version)
        return entry.state

    def unkeep(self, version_id: int) -> None:
        """Let a version be evicted like the others again, as if a request had just used it."""
        entry = self.host.states[version_id]
        entry.kept, entry.used_at = False, time.monotonic()
        self.host.forget(version_id)

    def pin(self, version: VersionRecord) -> None:
        """Let a version keep its slot once it has one.

        Raises:
            TooManyPins: it would leave no slot for the others.
        """
        self.slots.pin(version.version_id)
        self.host.states[version.version_id].pinned = True

    def unpin(self, version: VersionRecord) -> None:
        """Let a version lose its slot to others again."""
        self.slots.unpin(version.version_id)
        self.host.states[version.version_id].pinned = False
        self.host.forget(version.version_id)

    async def drain(
        self, version: VersionRecord, *, retired: bool = False, deadline_seconds: float = 0
    ) -> None:
        """Remove a version now if no request holds it, otherwise when the last one has ended.

        Requests on a retired version that still run after `deadline_seconds` are ended.
        """
        await self.host.until_loaded(version)
        entry = self.host.states[version.version_id]
        entry.retired = entry.retired or retired
        if entry.state is State.READY:
            self.unpin(version)
            entry.on(Event.EVICTED)
        if entry.state is not State.DRAINING:
            self.host.forget(version.version_id)
        elif not entry.in_use:
            await self._evict(version.version_id, entry)
        elif retired:
            await asyncio.sleep(deadline_seconds)
            if self.host.states.has(version.version_id, State.DRAINING):
                await self._engine.abort(version)

    def _end_lease(self, ticket: SlotTicket, entry: VersionEntry) -> None:
        del self._leases[ticket]
        if self._waiting.pop(ticket, None):
            entry.waiting -= 1
        else:
            entry.leases -= 1
        entry.used_at = time.monotonic()
        self.slots.leave(ticket, entry.used_at)
        self._evict_if_draining(ticket.version_id, entry)
        self._advance()

    def _evict_if_draining(self, version_id: int, entry: VersionEntry) -> None:
        if entry.in_use:
            return
        if entry.retired and entry.state is State.READY:  # wanted in its last moment
            entry.on(Event.EVICTED)
        if entry.state is State.DRAINING:
            self._evict(version_id, entry)
        elif entry.retired:  # it was never loaded: nobody asks for it again
            self.host.forget(version_id)

    def _evict(self, version_id: int, entry: VersionEntry) -> asyncio.Task[None]:
        return self.host.evict(version_id, "retired" if entry.retired else "dismissed")

    async def _granted(
        self, granted: asyncio.Future[Install], version: VersionRecord, tenant: str
    ) -> Install:
        """Wait until the version is granted a slot. Returns the task that installs it.

        If the version holds a slot and only requests of the same tenant are ahead, the request may
        wait longer: `OWN_WAIT_FACTOR` times as long in all.
        """
        started, limit = time.monotonic(), self._limits.slot_wait_seconds
        waited = 0.0
        try:
            while not (await asyncio.wait({granted}, timeout=limit))[0]:
                waited += limit
                if not self.slots.holds(version.version_id):
                    raise SlotTimeout(
                        f"no slot for {version.public_name} came free within {waited:g} s; try "
                        "again, or have LORAPLEX_MAX_LORAS raised",
                        param="model",
                    )
                if waited >= OWN_WAIT_FACTOR * limit:
                    raise SlotTimeout(
                        f"{self._limits.max_running_per_tenant} requests of this tenant have "
                        f"kept {version.public_name} busy for {waited:g} s; send fewer at a "
                        "time",
                        param="model",
                    )
            return granted.result()
        finally:
            label = metrics.tenant_label(tenant)
            metrics.QUEUE_SECONDS.labels(label, "slot").observe(time.monotonic() - started)

    async def _installed(self, install: Install) -> None:
        self._num_loading += 1
        try:
            # Shielded: a client that goes away must not cancel what others wait for.
            await asyncio.shield(install)
        finally:
            self._num_loading -= 1

    def _advance(self) -> None:
        """Admit the requests for which there is a slot now."""
        now = time.monotonic()
        for grant in self.slots.advance(now):
            if grant.victim is not None:
                self._installs.pop(grant.victim, None)
                metrics.EVICTIONS.labels("slot", "capacity").inc()
            self._admit(grant)
        for ticket in self.slots.overdue(now):
            self._leases[ticket].preempt()
        if self._timer is not None:
            self._timer.cancel()
        deadline, loop = self.slots.next_deadline(now), asyncio.get_running_loop()
        delay = None if deadline is None else max(0.0, deadline - time.monotonic())
        self._timer = None if delay is None else loop.call_later(delay, self._advance)

    def _admit(self, grant: Grant) -> None:
        install = self._installs.get(grant.version_id)
        if install is None or (install.done() and install.exception()):
            install = asyncio.create_task(self._install(grant.version_id))
            install.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._installs[grant.version_id] = install
        entry = self.host.states[grant.version_id]
        for ticket in grant.tickets:
            entry.waiting, entry.leases = entry.waiting - 1, entry.leases + 1
            self._waiting.pop(ticket).set_result(install)

    async def _install(self, version_id: int) -> None:
        """Install a version that was granted a slot.

        The engine picks the slot to overwrite among versions that hold no grant.
        """
        version = self.host.versions[version_id]
        await self.host.load(version)
        self.host.require_same_engine()
        await self._engine.install(version, lambda: self._kept_for(version))

    def _kept_for(self, version: VersionRecord) -> list[int]:
        holders = self.slots.holders()
        if version.version_id not in holders:  # the request that wanted it has gone
            raise Unavailable(f"{version.public_name} has lost its slot; try again")
        return holders

    def _leave_slot(self, version_id: int) -> None:
        self._installs.pop(version_id, None)
        self.slots.remove(version_id)
