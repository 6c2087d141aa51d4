"""The console's own app: its pages, the guard before them, and errors as pages."""

from __future__ import annotations

import logging
import mimetypes

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from adapters_registry.errors import RegistryError
from server.api.admin import refusing_suspended
from server.console import adapter, adapters, changes, login, overview, register
from server.console.guard import Guard
from server.console.pages import audit, keys, playground, reports, rollout, tenants, usage
from server.console.parts import NUM_THREADS, Parts, Services
from server.console.rendering import STATIC, Renderer, is_partial
from server.console.sessions import Sessions
from server.errors import APIError, NotFound
from server.errors.mapping import to_api_error
from server.workers import Workers

log = logging.getLogger(__name__)

PAGES = (
    *(login, overview, adapters, adapter, changes, rollout, register, playground),
    *(usage, tenants, keys, audit, reports),
)
"""Each has a function `router(parts)`, whose paths are below `/console`."""


def build_console(services: Services, secret: bytes) -> FastAPI:
    """Put the console together, to be mounted at `/console`. `secret` signs its sessions."""
    app = FastAPI(title="Loraplex console", docs_url=None, redoc_url=None, openapi_url=None)
    sessions = Sessions(services.keys, secret)
    parts = Parts(services, sessions, Renderer(), Workers("console", NUM_THREADS))
    guarded = [Depends(refusing_suspended(services.registry))]
    for page in PAGES:
        # Nobody is logged in yet at the login.
        page.router(parts).add_to(app, () if page is login else guarded)
    app.mount("/playground", playground.answering(services.data_plane))

    @app.get("/static/{name}")
    async def static(name: str) -> FileResponse:
        if not name.isprintable() or not (STATIC / name).is_file() or "/" in name:
            raise NotFound("there is no such file")
        kind, _ = mimetypes.guess_type(name)
        headers = {"cache-control": "public, max-age=31536000, immutable"}
        return FileResponse(STATIC / name, headers=headers, media_type=kind)

    def answer_error(request: Request, error: APIError) -> Response:
        """Tell of an error: in a page, or in the place of messages of the page that asks."""
        if is_partial(request):
            to_messages = {
                "hx-retarget": "#messages",
                "hx-reswap": "innerHTML",
                "hx-reselect": ".message",
            }
            return parts.renderer.page(
                request, "message.html", status=error.status, headers=to_messages, error=error
            )
        return parts.renderer.page(request, "error.html", status=error.status, error=error)

    async def handle(request: Request, error: Exception) -> Response:
        api_error = to_api_error(error)
        if isinstance(error, HTTPException) and error.status_code == 404:
            api_error = NotFound("there is no such page")
        if api_error.status >= 500:
            log.error("%s failed", request.url.path, exc_info=error)
        return answer_error(request, api_error)

    for kind in (
        APIError,
        RegistryError,
        RequestValidationError,
        HTTPException,
        OperationalError,
        Exception,
    ):
        app.add_exception_handler(kind, handle)
    app.add_middleware(Guard, sessions=sessions, answer_error=answer_error)
    return app
