"""The routes that report the server's state: `/livez`, `/startupz`, `/readyz`."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse

from adapters_registry.registry import Registry
from server.engine.interface import Engine
from server.errors import Unavailable
from server.lifecycle import Lifecycle

STALE_SECONDS = 3
"""The registry is read twice a second. After this time without an answer it is unreachable."""


def add_probes(app: FastAPI, registry: Registry, engine: Engine, lifecycle: Lifecycle) -> None:
    """Add the routes that kubelets and proxies ask."""

    @app.head("/livez", include_in_schema=False)
    @app.get("/livez", tags=["operations"], response_class=PlainTextResponse)
    async def live() -> PlainTextResponse:
        """Say that this process answers."""
        return PlainTextResponse("ok\n")

    @app.get("/startupz", tags=["operations"], response_class=PlainTextResponse)
    async def started() -> PlainTextResponse:
        """Say that the engine has started, whatever else is still being prepared."""
        engine.require_ready()
        return PlainTextResponse("ok\n")

    # Load testers, gateways and other servers' default probes ask /health.
    @app.get("/health", tags=["operations"])
    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", tags=["operations"])
    async def ready() -> JSONResponse:
        """Say whether requests are answered: the engine makes progress, however much is waiting.

        An unreachable database is reported but does not fail readiness. The server goes on with
        its catalog; and since all servers share the database, none would be left.
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
