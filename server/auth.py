"""Who is asking: a request's key becomes a `Caller` before its body is read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from adapters_registry.audit import ACTOR, Actor
from adapters_registry.keys import (
    ADAPTERS,
    ADMIN,
    INFERENCE,
    create_key,
    find_key,
    new_key,
    note_use,
)
from adapters_registry.models import now
from adapters_registry.names import DEFAULT_TENANT
from adapters_registry.records import Registry
from adapters_registry.tenants import no_tenant
from server.errors import APIError, Forbidden, Unauthenticated, error_response

OPEN_PATHS = frozenset({"/livez", "/readyz", "/metrics", "/docs", "/openapi.json"})
"""What answers without a key; everything else is closed, whether it exists or not."""
TENANT_PATHS = ("/admin/adapters", "/admin/audit", "/admin/usage", "/admin/whoami")
"""What the scope `adapters` opens, for the caller's own; the rest of `/admin` is for admins."""


@dataclass(frozen=True)
class Caller:
    """Whose key a request carries."""

    tenant: str
    scopes: frozenset[str]
    key_id: str = ""
    """The key's public part."""

    @property
    def is_admin(self) -> bool:
        """Whether the caller may manage every tenant."""
        return ADMIN in self.scopes

    def manages(self, tenant: str) -> bool:
        """Whether a tenant's adapters are this caller's to manage; others' don't exist for it."""
        return self.is_admin or tenant == self.tenant

    def require_tenant(self, tenant: str) -> None:
        """Raise `NotFound`, as for a tenant that doesn't exist, unless the caller manages it."""
        if not self.manages(tenant):
            raise no_tenant(tenant)


class Keys:
    """The registry's keys, as requests present them. They are looked up in its catalog, in memory:
    what another server makes or revokes counts here as soon as the catalog is refreshed."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._last_used: dict[str, datetime] = {}

    def create(self, tenant: str, scopes: list[str]) -> str:
        """Make a key and return it; it can't be read again."""
        key = new_key()
        self._registry.apply(create_key, key, tenant, scopes)
        return key

    def create_first_admin_key(self, file: Path) -> None:
        """Where no admin key is valid, write a new one to `file`, readable by its owner only.

        The file comes first: a crash before the record means another try, not a lost key.
        """
        keys = self._registry.catalog.keys.values()
        if any(ADMIN in key.scopes and key.is_valid(now()) for key in keys):
            return
        key = new_key()
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as handle:
            os.fchmod(descriptor, 0o600)
            handle.write(key + "\n")
            handle.flush()
            os.fsync(descriptor)
        self._registry.apply(
            create_key, key, DEFAULT_TENANT, [ADMIN, INFERENCE], label="first admin key"
        )

    def authenticate(self, presented: str | None) -> Caller:
        """Whose key this is; `Unauthenticated` if nobody's, or one that has ended."""
        if not presented:
            raise Unauthenticated("no API key: send the header 'Authorization: Bearer <key>'")
        key = find_key(presented, self._registry.catalog.keys)
        if key is None:
            raise Unauthenticated("this API key isn't valid: check that it was copied whole")
        at = now()
        if not key.is_valid(at):
            raise Unauthenticated("this API key was revoked or has expired: ask for another")
        self._last_used[key.id] = at
        return Caller(key.tenant, key.scopes, key.id)

    def save_last_used(self) -> None:
        """Record when keys were last used; not done with each request, which touches no disk."""
        last_used, self._last_used = self._last_used, {}
        if last_used:
            with self._registry.session() as session:
                note_use(session, dict(last_used))


class Authentication:
    """ASGI middleware: closed by default; puts the `Caller` into the request's state."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self.app, self.keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                caller = self._admit(scope)
                scope.setdefault("state", {})["caller"] = caller
                host, _ = scope.get("client") or ("", 0)
                ACTOR.set(Actor(f"key {caller.key_id}", host))
            except APIError as error:
                await error_response(error, scope["path"])(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _admit(self, scope: Scope) -> Caller:
        caller = self.keys.authenticate(_presented_key(Headers(scope=scope)))
        if not caller.scopes & (allowed := _allowing(scope["path"])):
            raise Forbidden(f"this API key lacks the scope {' or '.join(sorted(allowed))}")
        return caller


def require_admin(request: Request) -> None:
    """A route's dependency: raise `Forbidden` unless the caller is an admin."""
    if not request.state.caller.is_admin:
        raise Forbidden(f"this API key lacks the scope {ADMIN}")


def _allowing(path: str) -> frozenset[str]:
    """The scopes of which a caller needs one."""
    if path.startswith("/v1/"):
        return frozenset({INFERENCE})
    if any(path == open_ or path.startswith(open_ + "/") for open_ in TENANT_PATHS):
        return frozenset({ADMIN, ADAPTERS})
    return frozenset({ADMIN})


def _presented_key(headers: Headers) -> str | None:
    """The key of OpenAI's header, or of Anthropic's (`x-api-key`)."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials:
        return credentials.strip()
    return headers.get("x-api-key", "").strip()
