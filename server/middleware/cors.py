"""ASGI middleware for browsers that decides which origins' pages may call this server (CORS)."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from server.middleware.authentication import is_of_console

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_RATES = [
    f"x-ratelimit-{part}-{unit}"
    for part in ("limit", "remaining", "reset")
    for unit in ("requests", "tokens")
]
EXPOSED = (
    "x-request-id",
    "request-id",
    "x-adapter-id",
    "x-adapter-version",
    "x-adapter-digest",
    "x-adapter-tier",
    "x-tools-left-out",
    "retry-after",
    "x-should-retry",
    *_RATES,
)
"""Headers of an answer that a page may read."""


class Cors:
    """Answers preflight requests, which carry no key, and marks answers for allowed origins.

    An origin that is not allowed gets a plain 403. Cookies are never allowed: keys are sent in a
    header. The console, which has a cookie, is closed to all other origins.
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...], *, admin: bool) -> None:
        """`origins`: those allowed, or `*` for all. `admin`: whether /admin is opened to them."""
        self.app, self.admin = app, admin
        self.cors = _Preflights(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=["*"],
            expose_headers=EXPOSED,
            max_age=600,
        )
        self.closed = _Preflights(app, allow_origins=())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or "origin" not in Headers(scope=scope):
            await self.app(scope, receive, send)
        elif is_of_console(scope["path"]) or (
            scope["path"].startswith("/admin") and not self.admin
        ):
            await self.closed(scope, receive, send)
        else:
            await self.cors(scope, receive, send)


class _Preflights(CORSMiddleware):
    def preflight_response(self, request_headers: Headers) -> Response:
        """Return 403 instead of 400 if an origin or method is not allowed."""
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        return PlainTextResponse(
            "pages of this origin may not send this request\n", status_code=403
        )
