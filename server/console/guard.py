"""ASGI middleware before every page: whose session it is, and whether a change comes from a page.

A path below `/console` that is not listed as open needs a session, whether it exists or not.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

from fastapi import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from adapters_registry.records.audit import KEY_ACTOR, Actor, current_actor
from server.auth import Caller
from server.console.navigation import ROOT, place_of
from server.console.rendering import HEADERS, is_partial
from server.console.sessions import COOKIE, Sessions
from server.errors import APIError, Forbidden, Unauthenticated
from server.middleware.refusals import Refusals

LOGIN = f"{ROOT}/login"
RESUME = f"{ROOT}/session"
STATIC = f"{ROOT}/static/"
CSRF_HEADER = "x-csrf-token"
SAFE_METHODS = frozenset({"GET", "HEAD"})

Answering = Callable[[Request, APIError], Response]


class Guard:
    """Sets `state.caller` and `state.csrf_token`; sends those without a session to the log-in."""

    def __init__(self, app: ASGIApp, sessions: Sessions, answer_error: Answering) -> None:
        """`answer_error` makes the page that tells of an error."""
        self.app, self._sessions, self._answer_error = app, sessions, answer_error
        self._refusals = Refusals()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        path: str = scope["path"]
        cookie = request.cookies.get(COOKIE, "")
        address = request.client.host if request.client else ""
        try:
            if not path.startswith(STATIC) and path != LOGIN:
                caller = self._caller(cookie, path, address)
                scope["state"]["caller"] = caller
                current_actor.set(Actor(f"{KEY_ACTOR}{caller.key_id}", address))
            scope["state"]["csrf_token"] = self._sessions.csrf_token(cookie)
            if request.method not in SAFE_METHODS:
                self._require_own_page(request, cookie)
        except Unauthenticated as error:
            await _to_login(request, error)(scope, receive, send)
        except APIError as error:
            await self._answer_error(request, error)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _caller(self, cookie: str, path: str, address: str) -> Caller:
        if not cookie:
            raise Unauthenticated("log in first", reason="missing")
        try:
            caller = self._sessions.caller(cookie)
        except Unauthenticated as error:
            self._refusals.note(error.reason, None, address)
            raise
        place = place_of(path)
        if place and not place.is_open_to(caller):
            scopes = " or ".join(sorted(place.scopes))
            raise Forbidden(f"this page needs a key with the scope {scopes}")
        return caller

    def _require_own_page(self, request: Request, cookie: str) -> None:
        if not self._sessions.is_csrf_token(request.headers.get(CSRF_HEADER, ""), cookie):
            raise Forbidden("this page belongs to an earlier session: reload it, then try again")


def _to_login(request: Request, error: Unauthenticated) -> Response:
    """Send the browser to the log-in page, which says why and leads back here."""
    if request.url.path == RESUME:  # asked by that very page
        return Response(status_code=204, headers=HEADERS)
    from_page = request.method in SAFE_METHODS and not is_partial(request)
    query = f"?{request.url.query}" if request.url.query else ""
    back = quote(f"{request.url.path}{query}", safe="/") if from_page else ""
    url = f"{LOGIN}?why={error.reason}&next={back}"
    if is_partial(request):
        return Response(status_code=401, headers=HEADERS | {"hx-redirect": url})
    return RedirectResponse(url, 303, HEADERS)
