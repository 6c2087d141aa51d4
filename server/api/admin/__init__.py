"""`/admin`: what an operator does to the registry of a running server."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import APIRouter, Depends, Request

from adapters_registry.errors import NotFound
from adapters_registry.registry import Registry
from server.api.admin import adapters, aliases, audit, garbage, residency, tenants, usage
from server.auth import Caller, Keys
from server.gate.gate import Gate
from server.residency.leases import Leases
from server.settings import Settings
from server.tenancy.usage import UsageBuffer


def router(
    registry: Registry,
    keys: Keys,
    gate: Gate,
    leases: Leases,
    usage_buffer: UsageBuffer,
    settings: Settings,
) -> APIRouter:
    """Return all admin routes."""

    async def follow() -> AsyncIterator[None]:
        """Start at once what a change means for the engine, not when the catalog is read next."""
        yield
        leases.follow(registry.catalog)

    routes = APIRouter(prefix="/admin", dependencies=[Depends(_hide_foreign), Depends(follow)])
    routes.include_router(adapters.router(registry, gate, settings))
    routes.include_router(aliases.router(registry))
    routes.include_router(residency.router(registry, leases))
    routes.include_router(audit.router(registry))
    routes.include_router(tenants.router(registry, keys))
    routes.include_router(garbage.router(registry, settings))
    routes.include_router(usage.router(registry, usage_buffer))
    return routes


async def _hide_foreign(request: Request) -> None:
    """Answer 404 for another tenant's adapter, before anything is looked up."""
    caller: Caller = request.state.caller
    tenant, name = request.path_params.get("tenant"), request.path_params.get("name")
    if tenant is not None and not caller.manages(tenant):
        raise NotFound(f"there is no adapter {tenant}/{name}")
