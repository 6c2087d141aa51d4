"""API keys: made once, kept as salted hashes, checked before a request's body is read."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from adapters_registry.audit import ACTOR, Actor
from adapters_registry.models import ApiKey
from adapters_registry.names import DEFAULT_TENANT
from adapters_registry.records import Registry
from server.errors import APIError, Forbidden, Unauthenticated, error_response

INFERENCE, ADMIN = "inference", "admin"
KEY_PREFIX = "lpx"

OPEN_PATHS = frozenset({"/livez", "/readyz", "/metrics", "/docs", "/openapi.json"})
"""What answers without a key; everything else is closed, whether it exists or not."""


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


class Keys:
    """The keys in the registry's database, held in memory for the request path."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._keys: dict[str, ApiKey] = {}
        self._load()

    def create(self, tenant: str, scopes: list[str]) -> str:
        """Make a key and return it; it can't be read again. Form: `lpx-<id>-<256 random bits>`."""
        key = _new_key()
        self._add(key, tenant, scopes)
        return key

    def create_first_admin_key(self, file: Path) -> None:
        """On the very first start, write an admin key to `file`, readable by its owner only.

        The file comes first: a crash before the record means another try, not a lost key.
        """
        if self._keys:
            return
        key = _new_key()
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as handle:
            os.fchmod(descriptor, 0o600)
            handle.write(key + "\n")
            handle.flush()
            os.fsync(descriptor)
        self._add(key, DEFAULT_TENANT, [ADMIN, INFERENCE])

    def authenticate(self, presented: str | None) -> Caller:
        """Whose key this is; `Unauthenticated` if nobody's."""
        if not presented:
            raise Unauthenticated("no API key: send the header 'Authorization: Bearer <key>'")
        prefix, _, rest = presented.partition("-")
        key_id, _, secret = rest.partition("-")
        key = self._keys.get(key_id)
        expected = key.secret_sha256 if key else "0" * 64
        given = _hash(key.salt if key else "", secret)
        if not hmac.compare_digest(given, expected) or key is None or prefix != KEY_PREFIX:
            raise Unauthenticated("this API key isn't valid: check that it was copied whole")
        return Caller(key.tenant, frozenset(key.scopes), key.id)

    def _add(self, key: str, tenant: str, scopes: list[str]) -> None:
        _, key_id, secret = key.split("-", 2)
        salt = secrets.token_hex(16)
        with self._registry.session() as session:
            session.add(
                ApiKey(
                    id=key_id,
                    tenant=tenant,
                    salt=salt,
                    secret_sha256=_hash(salt, secret),
                    scopes=scopes,
                )
            )
        self._load()

    def _load(self) -> None:
        with self._registry.session() as session:
            keys = session.scalars(select(ApiKey)).all()
            session.expunge_all()
        self._keys = {key.id: key for key in keys}


def _new_key() -> str:
    return f"{KEY_PREFIX}-{secrets.token_hex(6)}-{secrets.token_urlsafe(32)}"


def _hash(salt: str, secret: str) -> str:
    # The secret has 256 random bits, so a slow hash would add nothing but time.
    return hashlib.sha256(f"{salt}{secret}".encode()).hexdigest()


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
        needed = INFERENCE if scope["path"].startswith("/v1/") else ADMIN
        if needed not in caller.scopes:
            raise Forbidden(f"this API key lacks the scope {needed!r}")
        return caller


def _presented_key(headers: Headers) -> str | None:
    """The key of OpenAI's header, or of Anthropic's (`x-api-key`)."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials:
        return credentials.strip()
    return headers.get("x-api-key")
