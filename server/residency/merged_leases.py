"""Leases on a dedicated server: its version's weights are the base's, so nothing is loaded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from adapters_registry.content.merged_model import MergedVersion
from adapters_registry.records.catalog import VersionRecord
from adapters_registry.registry import Registry
from server import metrics
from server.engine.interface import Engine
from server.residency.leases import Lease, Leases, limits_of
from server.residency.slots import SlotLease
from server.residency.states import Tier
from server.settings import Settings


class MergedLeases(Leases):
    """Gives a lease on the merged version at once. Requests find it as if it were in a slot."""

    def __init__(
        self, settings: Settings, engine: Engine, registry: Registry, merged: MergedVersion
    ) -> None:
        limits = limits_of(settings, engine, registry)
        super().__init__(engine, registry, limits, settings.retire_seconds)
        self._merged = merged

    @asynccontextmanager
    async def lease(self, version: VersionRecord, tenant: str) -> AsyncIterator[Lease]:
        """Hold the merged version for one request, until `Lease.end` or the end of the context."""
        label = metrics.adapter_label(version.adapter_id)
        lease = Lease(Tier.SLOT, SlotLease(lambda: None), label)
        try:
            yield lease
        finally:
            lease.end()

    def tier_of(self, version: VersionRecord) -> Tier:
        """Return where the version's weights are now."""
        if version.public_name == self._merged.public_name:
            return Tier.SLOT
        return super().tier_of(version)

    def _pin(self, version: VersionRecord) -> None:
        """Load nothing. Pins are for the servers that answer for many adapters."""
