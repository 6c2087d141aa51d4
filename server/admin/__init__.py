"""`/admin`: what an operator does to the registry of a running server."""

from __future__ import annotations

from fastapi import APIRouter

from adapters_registry.records import Registry
from server.admin import adapters, aliases, audit
from server.gate import Gate
from server.settings import Settings


def router(registry: Registry, gate: Gate, settings: Settings) -> APIRouter:
    """All admin routes."""
    routes = APIRouter(prefix="/admin")
    routes.include_router(adapters.router(registry, gate, settings))
    routes.include_router(aliases.router(registry))
    routes.include_router(audit.router(registry))
    return routes
