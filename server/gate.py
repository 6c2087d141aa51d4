"""The gate: decides whether a registered version may serve."""

from __future__ import annotations

import asyncio

from adapters_registry.catalog import VersionRecord
from adapters_registry.errors import AdapterRejected
from adapters_registry.records import Registry


class Gate:
    """Checks versions, each once however many wait for its verdict."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._checks: dict[int, asyncio.Task[VersionRecord]] = {}

    def start(self, version: VersionRecord) -> None:
        """Begin to check a pending version; one that is being checked already is let be."""
        if version.engine_id in self._checks:
            return
        check = asyncio.create_task(asyncio.to_thread(check_now, self._registry, version))
        self._checks[version.engine_id] = check
        check.add_done_callback(lambda _: self._checks.pop(version.engine_id))

    async def verdict(self, version: VersionRecord) -> VersionRecord:
        """Wait for a check that runs; a version that isn't being checked comes back as it is."""
        check = self._checks.get(version.engine_id)
        # Shielded: a client that goes away must not cut off the check.
        return await asyncio.shield(check) if check else version


def check_now(registry: Registry, version: VersionRecord) -> VersionRecord:
    """Check a version and record the verdict."""
    try:
        facts = registry.check_files(version)
    except AdapterRejected as rejection:
        return registry.reject(version, rejection.reasons)
    return registry.accept(version, facts)
