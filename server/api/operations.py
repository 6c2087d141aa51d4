"""The routes for operators: `/livez`, `/readyz`, `/metrics`."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

from adapters_registry.registry import Registry
from server.api.registry_metrics import registry_metrics
from server.engine.interface import Engine
from server.errors import Unavailable
from server.lifecycle import Lifecycle
from server.residency.leases import Leases
from server.residency.metrics import residency_metrics

STALE_SECONDS = 3
"""A registry looked at twice a second and not seen for so long can't be reached."""


def add_operations(
    app: FastAPI,
    registry: Registry,
    engine: Engine,
    leases: Leases,
    lifecycle: Lifecycle,
    max_loras: int,
) -> None:
    of_the_registry = registry_metrics(registry)

    @app.get("/livez", tags=["operations"])
    async def live() -> PlainTextResponse:
        """Say that this process answers."""
        return PlainTextResponse("ok\n")

    # Load testers, gateways and other servers' default probes ask /health.
    @app.get("/health", tags=["operations"])
    @app.get("/readyz", tags=["operations"])
    async def ready() -> JSONResponse:
        """Say whether requests are answered: the engine makes progress, however much is waiting.

        A registry that can't be reached is a detail: what is known of it serves on, and with one
        database for all servers, none would be left.
        """
        if lifecycle.leaving or lifecycle.draining:
            raise Unavailable("the server is shutting down")
        await engine.require_progress()
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
        of_residency = residency_metrics(leases.snapshot(), max_loras, disk_bytes)
        parts = (REGISTRY, of_the_registry, of_residency)
        text = await asyncio.to_thread(lambda: b"".join(map(generate_latest, parts)))
        return Response(text, media_type=CONTENT_TYPE_LATEST)
