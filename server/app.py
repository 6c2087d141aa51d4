"""The composition root: settings, registry, keys and engine become one FastAPI app."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

from adapters_registry.records import Registry
from server import admin, errors, inference, listing, metrics
from server.adapters import Adapters
from server.auth import Authentication, Keys
from server.body_limit import BodyLimit
from server.engine.interface import Engine
from server.errors import Unavailable
from server.gate import Gate
from server.lifecycle import Lifecycle
from server.residency_metrics import residency_metrics
from server.security_headers import SecurityHeaders
from server.settings import Settings
from server.showback import Showback

STALE_SECONDS = 3
"""A registry looked at twice a second and not seen for so long can't be reached."""


def build_app(
    settings: Settings,
    registry: Registry,
    keys: Keys,
    engine: Engine,
    adapters: Adapters,
    gate: Gate,
    lifecycle: Lifecycle,
    showback: Showback,
) -> FastAPI:
    """Put the parts together; starts nothing."""
    app = FastAPI(title="Loraplex", redoc_url=None)
    app.state = engine.app_state
    errors.install(app)
    app.add_middleware(BodyLimit, max_upload_mib=settings.max_adapter_mib)
    app.add_middleware(Authentication, keys=keys)
    app.add_middleware(metrics.RequestCounting)
    app.add_middleware(SecurityHeaders)
    base_name = settings.served_base_name
    app.include_router(inference.router(engine, adapters, registry, lifecycle, showback, base_name))
    app.include_router(listing.router(registry, adapters, base_name, registry.base.name))
    app.include_router(admin.router(registry, keys, gate, adapters, showback, settings))
    _add_operations(app, registry, engine, adapters, lifecycle, settings.max_loras)
    return app


def _add_operations(
    app: FastAPI,
    registry: Registry,
    engine: Engine,
    adapters: Adapters,
    lifecycle: Lifecycle,
    max_loras: int,
) -> None:
    of_the_registry = metrics.registry_metrics(registry)

    @app.get("/livez", tags=["operations"])
    async def live() -> PlainTextResponse:
        """Say that this process answers."""
        return PlainTextResponse("ok\n")

    @app.get("/readyz", tags=["operations"])
    async def ready() -> JSONResponse:
        """Say whether requests are answered: the engine gives a token.

        A registry that can't be reached is a detail: what is known of it serves on, and with one
        database for all servers, none would be left.
        """
        if lifecycle.leaving or lifecycle.draining:
            raise Unavailable("the server is shutting down")
        await engine.probe()
        if not lifecycle.prepared:
            raise Unavailable("the demo adapters are being checked")
        stale_seconds = registry.stale_seconds
        registry_state = {
            "reachable": stale_seconds < STALE_SECONDS,
            "stale_seconds": round(stale_seconds, 1),
        }
        detail = {"status": "ready", "engine": engine.state.value, "registry": registry_state}
        return JSONResponse(detail)

    @app.get("/metrics", tags=["operations"])
    async def scrape() -> Response:
        """Prometheus metrics, ours and vLLM's."""
        disk_bytes = sum(registry.content.sizes().values())
        of_residency = residency_metrics(adapters.snapshot(), max_loras, disk_bytes)
        parts = (REGISTRY, of_the_registry, of_residency)
        text = await asyncio.to_thread(lambda: b"".join(map(generate_latest, parts)))
        return Response(text, media_type=CONTENT_TYPE_LATEST)
