"""`/admin`: what an operator does to the registry of a running server."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import APIRouter, Depends

from adapters_registry.records import Registry
from server.adapters import Adapters
from server.admin import adapters, aliases, audit, residency
from server.gate import Gate
from server.settings import Settings


def router(registry: Registry, gate: Gate, held: Adapters, settings: Settings) -> APIRouter:
    """All admin routes."""

    async def follow() -> AsyncIterator[None]:
        """What a change means for the engine is begun with the answer, not at the next look."""
        yield
        held.follow(registry.catalog)

    routes = APIRouter(prefix="/admin", dependencies=[Depends(follow)])
    routes.include_router(adapters.router(registry, gate, settings))
    routes.include_router(aliases.router(registry))
    routes.include_router(residency.router(registry, held))
    routes.include_router(audit.router(registry))
    return routes
