"""`/admin`: operators' routes to the registry of a running server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi import Depends, Request

from adapters_registry.errors import NotFound
from adapters_registry.registry import Registry
from server.api.admin import (
    adapters,
    audit,
    garbage,
    policies,
    recheck,
    residency,
    tenants,
    usage,
)
from server.api.admin.intakes import Intakes
from server.api.admin.rollout import aliases, canaries
from server.api.composition import routes as composition
from server.api.composition.compositions import Compositions
from server.api.intake.suspended import require_active_tenant
from server.api.routes import Routes
from server.auth import Caller, Keys
from server.gate.gate import Gate
from server.residency.leases import Leases
from server.rollout.rollouts import Rollouts
from server.settings import Settings
from server.tenancy.usage import UsageBuffer
from server.workers import Workers

NUM_THREADS = 8
SAFE_METHODS = frozenset({"GET", "HEAD"})


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
) -> Routes:
    """Return all admin routes.

    Their calls to the database have threads of their own. If the database is slow, they wait for
    each other, and nothing else waits for them.
    """
    workers = Workers("admin", NUM_THREADS)

    async def follow() -> AsyncIterator[None]:
        """Start at once what a change means for the engine, not when the catalog is read next."""
        yield
        leases.follow(registry.catalog)

    refuse_suspended = refusing_suspended(registry)
    dependencies = [Depends(hide_foreign), Depends(refuse_suspended), Depends(follow)]
    routes = Routes(prefix="/admin", dependencies=dependencies)
    routes.add(adapters.router(registry, gate, intakes, compositions, workers))
    routes.add(composition.router(registry, gate, compositions, settings))
    routes.add(recheck.router(registry, gate, workers))
    routes.add(aliases.router(registry, rollouts.warm, settings.warm_seconds, workers))
    routes.add(canaries.router(registry, rollouts, settings.warm_seconds, workers))
    routes.add(residency.router(registry, leases, workers))
    routes.add(audit.router(registry, workers))
    routes.add(tenants.router(registry, keys, workers))
    routes.add(policies.router(registry, workers))
    routes.add(garbage.router(registry, settings))
    routes.add(usage.router(registry, usage_buffer, workers))
    return routes


def refusing_suspended(registry: Registry) -> Callable[[Request], Awaitable[None]]:
    """Return a dependency that refuses the changes of a suspended tenant, unless by an admin."""

    async def refuse(request: Request) -> None:
        caller: Caller = request.state.caller
        if request.method not in SAFE_METHODS and not caller.is_admin:
            require_active_tenant(caller, registry.catalog)

    return refuse


async def hide_foreign(request: Request) -> None:
    """Answer 404 for another tenant's adapter, before anything is looked up."""
    caller: Caller = request.state.caller
    tenant, name = request.path_params.get("tenant"), request.path_params.get("name")
    if tenant is not None and not caller.manages(tenant):
        raise NotFound(f"there is no adapter {tenant}/{name}")
