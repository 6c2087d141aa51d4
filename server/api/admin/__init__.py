"""`/admin`: operators' routes to the registry of a running server."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import APIRouter, Depends, Request

from adapters_registry.errors import NotFound
from adapters_registry.registry import Registry
from server.api.admin import (
    adapters,
    audit,
    garbage,
    recheck,
    residency,
    tenants,
    usage,
)
from server.api.admin.intakes import Intakes
from server.api.admin.rollout import aliases, canaries
from server.api.composition import routes as composition
from server.api.composition.compositions import Compositions
from server.auth import Caller, Keys
from server.gate.gate import Gate
from server.residency.leases import Leases
from server.rollout.rollouts import Rollouts
from server.settings import Settings
from server.tenancy.usage import UsageBuffer
from server.workers import Workers

NUM_THREADS = 8


def router(
    registry: Registry,
    keys: Keys,
    gate: Gate,
    leases: Leases,
    usage_buffer: UsageBuffer,
    settings: Settings,
    intakes: Intakes,
    rollouts: Rollouts,
    compositions: Compositions,
) -> APIRouter:
    """Return all admin routes.

    Their calls to the database have threads of their own. If the database is slow, they wait for
    each other, and nothing else waits for them.
    """
    workers = Workers("admin", NUM_THREADS)

    async def follow() -> AsyncIterator[None]:
        """Start at once what a change means for the engine, not when the catalog is read next."""
        yield
        leases.follow(registry.catalog)

    routes = APIRouter(prefix="/admin", dependencies=[Depends(hide_foreign), Depends(follow)])
    routes.include_router(adapters.router(registry, gate, intakes, workers))
    routes.include_router(composition.router(registry, gate, compositions, settings))
    routes.include_router(recheck.router(registry, gate, workers))
    routes.include_router(aliases.router(registry, rollouts.warm, settings.warm_seconds, workers))
    routes.include_router(canaries.router(registry, rollouts, settings.warm_seconds, workers))
    routes.include_router(residency.router(registry, leases, workers))
    routes.include_router(audit.router(registry, workers))
    routes.include_router(tenants.router(registry, keys, workers))
    routes.include_router(garbage.router(registry, settings))
    routes.include_router(usage.router(registry, usage_buffer, workers))
    return routes


async def hide_foreign(request: Request) -> None:
    """Answer 404 for another tenant's adapter, before anything is looked up."""
    caller: Caller = request.state.caller
    tenant, name = request.path_params.get("tenant"), request.path_params.get("name")
    if tenant is not None and not caller.manages(tenant):
        raise NotFound(f"there is no adapter {tenant}/{name}")
