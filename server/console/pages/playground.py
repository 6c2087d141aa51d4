"""The playground: one prompt for several models. Each answer is a request like any other."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response

from adapters_registry.records.catalog import AdapterRecord
from adapters_registry.registry import Registry
from server.api.inference import DataPlane
from server.api.models import public_id
from server.api.resolve import may_use
from server.api.routes import Routes
from server.auth import Caller
from server.console.parts import Parts, caller_of
from server.console.rendering import HEADERS
from server.errors import mapping

CHAT = "/v1/chat/completions"
MAX_SUGGESTIONS = 20
NUM_ADAPTERS = 3
"""So many adapters or versions answer beside the base."""


def router(parts: Parts) -> Routes:
    """Return the routes of the page and of the names that it suggests."""
    routes = Routes()
    services = parts.services

    @routes.get("/playground")
    async def show(request: Request, model: Annotated[str, Query(max_length=256)] = "") -> Response:
        """Show the form. `model` is what the first adapter's field holds."""
        return parts.renderer.page(
            request,
            "playground.html",
            base=services.settings.served_base_name,
            models=[model, *[""] * (NUM_ADAPTERS - 1)],
        )

    @routes.get("/playground/models")
    async def suggest(
        request: Request, search: Annotated[str, Query(max_length=256)] = ""
    ) -> JSONResponse:
        """Return names that the caller may use; for a whole name its aliases and versions, too."""
        found = await parts.workers.run(
            suggestions, services.registry, caller_of(request), search.strip()
        )
        return JSONResponse(found, headers=HEADERS)

    return routes


def answering(data_plane: DataPlane) -> FastAPI:
    """Return an app that answers chats of whoever has a session, as the API answers keys.

    It is mounted below the page. Quotas, usage and the request log know no difference. Errors are
    OpenAI's, as the page's script expects.
    """
    app = FastAPI(title="Playground", docs_url=None, redoc_url=None, openapi_url=None)
    app.state = data_plane.engine.app_state
    mapping.install(app)
    data_plane.router({CHAT}).add_to(app)
    return app


def suggestions(registry: Registry, caller: Caller, search: str) -> list[str]:
    """Return at most `MAX_SUGGESTIONS` names of models that a caller may use."""
    usable = [
        adapter
        for adapter in registry.catalog.adapters.values()
        if adapter.ready and may_use(caller, adapter)
    ]
    wanted = search.partition("@")[0]
    chosen = next((each for each in usable if wanted in (public_id(each, caller), each.id)), None)
    if chosen:
        return list(islice(_forms_of(chosen, wanted), MAX_SUGGESTIONS))
    names = (public_id(each, caller) for each in usable if each.live and wanted in each.id)
    return sorted(names)[:MAX_SUGGESTIONS]


def _forms_of(adapter: AdapterRecord, name: str) -> list[str]:
    aliases = [f"{name}@{alias}" for alias in sorted(adapter.aliases)]
    return [name, *aliases, *(f"{name}@{number}" for number in sorted(adapter.ready, reverse=True))]
