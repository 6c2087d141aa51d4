"""Leases: a request holds its version from before the engine's first token until after its last.

This module also carries out changes of the registry. Versions that lose their last alias, or are
retired, leave the engine as soon as nothing runs on them. A version that an alias now points to is
loaded into host memory before a request asks for it, if another version of the adapter is there.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from adapters_registry.records.catalog import AdapterRecord, Catalog, VersionRecord
from adapters_registry.registry import Registry
from adapters_registry.rollout.promotion import WarmPromotion, Warmth
from server import metrics
from server.engine.interface import Engine
from server.errors import APIError, Unavailable
from server.residency.fetches import Fetches
from server.residency.slot_scheduler import TooManyPins
from server.residency.slots import EngineSlots, Limits, SlotLease
from server.residency.states import State, Tier, Wait
from server.settings import Settings

log = logging.getLogger(__name__)

RESERVE_SECONDS = 600.0
LINGER_SECONDS = 0.05
"""Longer than a client needs between an answer and its next request. See `slot_scheduler`."""


class Lease:
    """A request's hold on a version in a slot."""

    def __init__(self, tier: Tier, slot_lease: SlotLease, label: str) -> None:
        """`tier` is where the request found the version. `label` names the adapter in metrics."""
        self.tier = tier
        self._slot_lease, self._label = slot_lease, label
        self._began_at, self._ended_at = time.monotonic(), math.inf
        metrics.LEASES.labels(label).inc()
        self.on_preempted = slot_lease.on_preempted

    @property
    def seconds(self) -> float:
        """Return how long the slot was held, or has been until now."""
        return min(time.monotonic(), self._ended_at) - self._began_at

    def end(self) -> None:
        """Give the slot back, because the engine has done its work. May be called twice."""
        if self._ended_at == math.inf:
            self._ended_at = time.monotonic()
            metrics.LEASES.labels(self._label).dec()
            self._slot_lease.end()


class Leases:
    """Leases on the registry's versions in the engine, across restarts of the engine."""

    def __init__(
        self, engine: Engine, registry: Registry, limits: Limits, drain_seconds: float
    ) -> None:
        """`drain_seconds` is how long requests on a retired version may continue."""
        self._engine, self._registry, self._limits = engine, registry, limits
        self._drain_seconds = drain_seconds
        self._catalog = registry.catalog
        self._fetches = Fetches(registry.content)
        self._generation = engine.generation
        self._slots_of_engine = self._new_engine_slots()
        self._tasks: set[asyncio.Task[None]] = set()
        self._kept: set[int] = set()

    @classmethod
    def of(cls, settings: Settings, engine: Engine, registry: Registry) -> Leases:
        """Return leases with the limits of the settings."""
        limits = limits_of(settings, engine, registry)
        return Leases(engine, registry, limits, settings.retire_seconds)

    @property
    def engine_slots(self) -> EngineSlots:
        """Return the slots of the present engine. After a restart they are empty."""
        if self._generation != self._engine.generation:
            self._generation = self._engine.generation
            self._slots_of_engine = self._new_engine_slots()
            self._restore_pins()
        return self._slots_of_engine

    @asynccontextmanager
    async def lease(self, version: VersionRecord, tenant: str) -> AsyncIterator[Lease]:
        """Hold a version for one request of a tenant, until `Lease.end` or the end of the context.

        Raises:
            Unavailable: it cannot be loaded, or no slot became free in time.
        """
        slots, tier = self.engine_slots, self.tier_of(version)
        async with slots.lease(version, tenant) as slot_lease:
            lease = Lease(tier, slot_lease, metrics.adapter_label(version.adapter_id))
            try:
                yield lease
            finally:
                lease.end()

    def tier_of(self, version: VersionRecord) -> Tier:
        """Return where the version's weights are now."""
        return self.engine_slots.tier_of(version)

    async def drain(self, version: VersionRecord) -> None:
        """Remove a version from the engine, as soon as no request holds it."""
        await self.engine_slots.drain(version)

    def prefetch(self, version: VersionRecord) -> None:
        """Begin to load a version into host memory. A failure is logged and counted."""
        self._start(self.engine_slots.prefetch(version))

    def follow(self, catalog: Catalog) -> None:
        """Carry out what a changed catalog means. This is cheap if nothing has changed."""
        slots = self.engine_slots  # whose pins are restored after a start of the engine
        before, self._catalog = self._catalog, catalog
        if before is catalog:
            return
        for key, adapter in catalog.adapters.items():
            known = before.adapters.get(key)
            if known is not adapter:
                self._follow_adapter(known, adapter)
        for key in before.adapters.keys() - catalog.adapters.keys():
            for version in before.adapters[key].versions.values():
                if version.version_id in slots.host.versions:
                    self._retire(version)

    def keep_warm(self) -> dict[int, Warmth]:
        """Load what promotions wait for, if this server serves the adapter, and keep it loaded.

        Returns how far that is, by the promotion's epoch. To be called again and again.
        """
        wanted: set[int] = set()
        said: dict[int, Warmth] = {}
        for adapter in self._catalog.warming:
            if (promotion := adapter.warming) is not None:
                versions = [adapter.ready[n] for n in promotion.versions if n in adapter.ready]
                said[promotion.epoch] = self._keep(adapter, promotion, versions)
                wanted |= {version.version_id for version in versions}
        for version_id in self._kept - wanted:
            self.engine_slots.unkeep(version_id)
        self._kept = wanted
        return said

    def _keep(
        self, adapter: AdapterRecord, promotion: WarmPromotion, versions: list[VersionRecord]
    ) -> Warmth:
        slots, is_asked = self.engine_slots, promotion.server == self._registry.server_id
        here = slots.host.versions
        if not is_asked and not any(v.version_id in here for v in adapter.versions.values()):
            return Warmth.UNUSED
        states = {slots.keep(version) for version in versions}
        if not states:
            return Warmth.NOT_OFFERED
        if states == {State.READY}:
            return Warmth.WARM
        return Warmth.FAILED if State.FAILED in states else Warmth.LOADING

    def check_pin(self, version: VersionRecord) -> None:
        """Raise `slot_scheduler.TooManyPins` if the pin would leave no slot for other versions."""
        adapters = self._catalog.adapters.values()
        pinned = {v.version_id for a in adapters for v in a.ready.values() if v.pinned}
        if len(pinned | {version.version_id}) >= self._limits.slots:
            raise TooManyPins(f"{self._limits.slots - 1} of {self._limits.slots} slots")

    def num_waiting(self) -> dict[Wait, int]:
        """Return how many requests wait for a slot or for weights, by what they wait for."""
        return self.engine_slots.num_waiting()

    def snapshot(self) -> list[dict[str, Any]]:
        """Return a row for each version that is in the engine, is being loaded, or failed."""
        slots, rows = self.engine_slots, []
        for version_id, entry in slots.host.states.items():
            version = slots.host.versions.get(version_id)
            if version is None or (entry.state is State.ABSENT and not entry.leases):
                continue
            rows.append(
                {
                    "model": version.public_name,
                    "state": entry.state.value,
                    "tier": self.tier_of(version).value,
                    "leases": entry.leases,
                    "pinned": entry.pinned,
                    "size_bytes": version.size_bytes,
                    "error": entry.error or None,
                }
            )
        return rows

    async def in_engine(self) -> dict[str, list[str]] | None:
        """Return what the engine itself reports to hold, or None if it does not answer."""
        try:
            held = await self._engine.resident()
        except Unavailable:
            return None
        names = {i: v.public_name for i, v in self.engine_slots.host.versions.items()}
        return {
            "slots": [names.get(version_id, f"#{version_id}") for version_id in held.slots],
            "host": [names.get(version_id, f"#{version_id}") for version_id in held.host],
        }

    def _new_engine_slots(self) -> EngineSlots:
        return EngineSlots(self._engine, self._registry.content, self._fetches, self._limits)

    def _restore_pins(self) -> None:
        for adapter in self._catalog.adapters.values():
            for version in adapter.ready.values():
                if version.pinned:
                    self._pin(version)

    def _follow_adapter(self, before: AdapterRecord | None, now: AdapterRecord) -> None:
        was, targets = _targets(before), _targets(now)
        here = self.engine_slots.host.versions
        # On other servers the first request loads it: few of many replicas get its requests.
        is_asked_for = any(version.version_id in here for version in now.versions.values())
        for version in now.versions.values():
            is_left = version.number in was - targets and not version.pinned
            if is_left and version.version_id in here:
                self._start(self.engine_slots.drain(version))
        for version in before.versions.values() if before else ():
            # Retired, rejected, or of an adapter that was deleted and made again.
            known = now.versions.get(version.number)
            if known is None and version.version_id in here:
                self._retire(version)
        if before is not None:
            for number in targets - was:
                if is_asked_for and number in now.ready:
                    self.prefetch(now.ready[number])
            self._follow_pins(before, now)

    def _follow_pins(self, before: AdapterRecord, now: AdapterRecord) -> None:
        for number, version in now.ready.items():
            known = before.ready.get(number)
            if version.pinned != (known.pinned if known else False):
                (self._pin if version.pinned else self.engine_slots.unpin)(version)

    def _retire(self, version: VersionRecord) -> None:
        seconds = self._drain_seconds
        self._start(self.engine_slots.drain(version, retired=True, deadline_seconds=seconds))

    def _pin(self, version: VersionRecord) -> None:
        """Pin a version and load it into a slot. Another server may have slots for more pins."""
        try:
            self.engine_slots.pin(version)
        except TooManyPins as error:
            log.warning("%s is not pinned here: %s may be", version.public_name, error)
        else:
            self._start(self._touch(version))

    async def _touch(self, version: VersionRecord) -> None:
        async with self.engine_slots.lease(version, version.tenant):
            pass

    def _start(self, work: Any) -> None:
        async def carry_out() -> None:
            try:
                await work
            except APIError as error:
                log.warning("%s", error.message)

        task = asyncio.create_task(carry_out())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def limits_of(settings: Settings, engine: Engine, registry: Registry) -> Limits:
    """Return the limits that the settings set."""
    return Limits(
        slots=settings.max_loras,
        max_running_per_tenant=2 * engine.max_running,
        host=settings.host_adapters,
        quantum_seconds=settings.slot_quantum_seconds,
        linger_seconds=LINGER_SECONDS,
        slot_wait_seconds=settings.slot_wait_seconds,
        load_seconds=settings.load_seconds,
        reserve_seconds=RESERVE_SECONDS,
        preempt_seconds=settings.preempt_seconds or math.inf,
        host_bytes=math.inf if settings.host_cache_bytes is None else settings.host_cache_bytes,
        largest_bytes=registry.base.adapter_bytes(settings.max_lora_rank),
    )


def _targets(adapter: AdapterRecord | None) -> set[int]:
    """Return the versions that an adapter's aliases point to, or will once they are loaded."""
    if adapter is None:
        return set()
    coming = adapter.warming.versions if adapter.warming else ()
    return {target.version for a in adapter.aliases.values() for target in a.targets}.union(coming)
