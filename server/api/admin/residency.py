"""Residency by hand: pins, prefetches, and what the engine holds."""

from __future__ import annotations

from typing import Any

from fastapi import Depends

from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.retirement import pin_version
from adapters_registry.registry import Registry
from server.api.routes import Routes
from server.auth import require_admin
from server.errors import Conflict
from server.residency.leases import Leases
from server.residency.slot_scheduler import TooManyPins
from server.workers import Workers


def router(registry: Registry, leases: Leases, workers: Workers) -> Routes:
    """Return the routes of residency."""
    routes = Routes(tags=["admin"], dependencies=[Depends(require_admin)])
    version_path = "/adapters/{tenant}/{name}/versions/{number}"

    @routes.put(version_path + "/pin", status_code=204)
    async def pin(tenant: str, name: str, number: int) -> None:
        """Keep a version in a slot: it is loaded now, and after each restart.

        One slot stays without a pin, or the other adapters would wait for ever: 409.
        """
        await prepare_pin(registry, leases, workers, tenant, name, number)
        await workers.run(registry.apply, pin_version, tenant, name, number, True)

    @routes.delete(version_path + "/pin", status_code=204)
    async def unpin(tenant: str, name: str, number: int) -> None:
        """Let a version be evicted again when others need its slot."""
        await workers.run(registry.apply, pin_version, tenant, name, number, False)

    @routes.post(version_path + "/prefetch", status_code=202)
    async def prefetch(tenant: str, name: str, number: int) -> dict[str, str]:
        """Begin to load a version into the engine's host memory, if there is room."""
        version = await prefetch_version(registry, leases, workers, tenant, name, number)
        return {"model": version.public_name, "tier": leases.tier_of(version).value}

    @routes.get("/residency")
    async def show_residency() -> dict[str, Any]:
        """Show versions that are loaded, being loaded, or failed, and what the engine holds."""
        return {"data": leases.snapshot(), "engine": await leases.in_engine()}

    return routes


async def prepare_pin(
    registry: Registry, leases: Leases, workers: Workers, tenant: str, name: str, number: int
) -> None:
    """Check that a version may be pinned here.

    Raises:
        NotFound: there is no such version.
        Conflict: the pin would leave no slot for other versions.
    """
    version = await workers.run(registry.get_version, tenant, name, number)
    try:
        leases.check_pin(version)
    except TooManyPins as error:
        raise Conflict(f"too many pins: {error} may be pinned (LORAPLEX_MAX_LORAS)") from error


async def prefetch_version(
    registry: Registry, leases: Leases, workers: Workers, tenant: str, name: str, number: int
) -> VersionRecord:
    """Begin to load a version into the engine's host memory, and return it.

    Raises:
        NotFound: there is no such version.
        Conflict: it is not ready.
    """
    version = registry.get_adapter(tenant, name).ready.get(number)
    if version is None:
        state = (await workers.run(registry.get_version, tenant, name, number)).state
        raise Conflict(f"{tenant}/{name}@{number} is {state}: only ready versions are loaded")
    leases.prefetch(version)
    return version
