"""ASGI middleware that turns the key of a request into a `Caller`."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from adapters_registry.records.audit import KEY_ACTOR, Actor, current_actor
from adapters_registry.records.keys import ADAPTERS, ADMIN, INFERENCE
from server.auth import Caller, Keys
from server.errors import APIError, Forbidden, Unauthenticated, error_response
from server.middleware.refusals import Refusals

OPEN_PATHS = frozenset(
    {
        "/livez",
        "/startupz",
        "/readyz",
        "/health",
        "/metrics",
        "/openapi.json",
        "/",
        "/docs",
        "/docs/swagger-ui.css",
        "/docs/swagger-ui-bundle.js",
        "/docs/start.js",
    }
)
"""Paths that need no key. All other paths need one, whether they exist or not."""

CONSOLE = "/console"
"""What is below it needs no key but a session (`server/console/guard.py`)."""

TENANT_PATHS = (
    "/admin/adapters",
    "/admin/audit",
    "/admin/requests",
    "/admin/usage",
    "/admin/whoami",
)
"""What the scope `adapters` opens, for the caller's own; the rest of `/admin` is for admins."""

LOADING_PATHS = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
TOKENIZING_PATHS = frozenset({"/tokenize", "/detokenize"})


class Authentication:
    """ASGI middleware that refuses requests without a valid key, and sets `state.caller`."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self.app, self.keys = app, keys
        self._refusals = Refusals()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _needs_key(scope["path"]):
            address, _ = scope.get("client") or ("", 0)
            try:
                caller = self._admit(scope, address)
                scope.setdefault("state", {})["caller"] = caller
                current_actor.set(Actor(f"{KEY_ACTOR}{caller.key_id}", address))
            except APIError as error:
                await error_response(error, scope["path"])(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _admit(self, scope: Scope, address: str) -> Caller:
        presented = _presented_key(Headers(scope=scope))
        try:
            caller = self.keys.authenticate(presented)
        except Unauthenticated as error:
            self._refusals.note(error.reason, presented, address)
            raise
        if not caller.scopes & (allowed := _allowing(scope["path"])):
            self._refusals.note("scope", presented, address)
            raise Forbidden(f"this API key lacks the scope {' or '.join(sorted(allowed))}")
        return caller


def is_of_console(path: str) -> bool:
    """Return whether a path is one of the console's."""
    return path == CONSOLE or path.startswith(f"{CONSOLE}/")


def _needs_key(path: str) -> bool:
    return path not in OPEN_PATHS and not is_of_console(path)


def _allowing(path: str) -> frozenset[str]:
    """Return the scopes of which a caller needs one for a path."""
    if path in LOADING_PATHS:
        return frozenset({ADMIN, ADAPTERS})
    if path.startswith("/v1/") or path in TOKENIZING_PATHS:
        return frozenset({INFERENCE})
    if any(path == open_ or path.startswith(open_ + "/") for open_ in TENANT_PATHS):
        return frozenset({ADMIN, ADAPTERS})
    if path == "/admin" or path.startswith("/admin/"):
        return frozenset({ADMIN})
    # There are no such routes: whoever has a key is told so, and what to ask instead.
    return frozenset({ADMIN, ADAPTERS, INFERENCE})


def _presented_key(headers: Headers) -> str | None:
    """Return the key of OpenAI's header, or of Anthropic's (`x-api-key`)."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials:
        return credentials.strip()
    return headers.get("x-api-key", "").strip()
