"""The composition root: settings, registry, keys and engine become one FastAPI app."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from sqlalchemy.exc import SQLAlchemyError

from adapters_registry.records import Registry
from server import admin, errors, inference, listing, metrics
from server.adapters import Adapters
from server.auth import Authentication, Keys
from server.body_limit import BodyLimit
from server.engine.interface import Engine
from server.errors import Unavailable
from server.gate import Gate
from server.lifecycle import Lifecycle
from server.settings import Settings
from server.showback import Showback


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
    base_name = settings.served_base_name
    app.include_router(inference.router(engine, adapters, registry, lifecycle, showback, base_name))
    app.include_router(listing.router(registry, adapters, base_name, registry.base.name))
    app.include_router(admin.router(registry, keys, gate, adapters, showback, settings))
    _add_operations(app, registry, engine, lifecycle)
    return app


def _add_operations(app: FastAPI, registry: Registry, engine: Engine, lifecycle: Lifecycle) -> None:
    version_counts = metrics.version_registry(registry.count_versions)

    @app.get("/livez", tags=["operations"])
    async def live() -> PlainTextResponse:
        """Say that this process answers."""
        return PlainTextResponse("ok\n")

    @app.get("/readyz", tags=["operations"])
    async def ready() -> JSONResponse:
        """Say whether requests are answered: the engine gives a token, the registry responds."""
        if lifecycle.draining:
            raise Unavailable("the server is shutting down")
        try:
            await asyncio.to_thread(registry.ping)
        except SQLAlchemyError as error:
            raise Unavailable("the registry's database doesn't answer") from error
        await engine.probe()
        if not lifecycle.prepared:
            raise Unavailable("the demo adapters are being checked")
        return JSONResponse({"status": "ready", "engine": engine.state.value})

    @app.get("/metrics", tags=["operations"])
    def scrape() -> Response:
        """Prometheus metrics, ours and vLLM's."""
        text = generate_latest(REGISTRY) + generate_latest(version_counts)
        return Response(text, media_type=CONTENT_TYPE_LATEST)
