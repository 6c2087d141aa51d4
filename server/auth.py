"""Authentication: a request's key becomes a `Caller` before the body is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from fastapi import Request

from adapters_registry.names import DEFAULT_TENANT
from adapters_registry.records.access.key_life import bound_lives
from adapters_registry.records.idempotency import Idempotency
from adapters_registry.records.keys import (
    ADMIN,
    UNBOUNDED,
    KeyPolicy,
    KeyRecord,
    create_first_admin_key,
    create_key,
    find_key,
    install_admin_key,
    new_key,
    note_use,
)
from adapters_registry.records.tables import now
from adapters_registry.records.tenants import no_tenant
from adapters_registry.registry import Registry
from server.errors import Forbidden, Unauthenticated


@dataclass(frozen=True)
class Caller:
    """Whose key a request carries."""

    tenant: str
    scopes: frozenset[str]
    key_id: str = ""
    """The key's public part."""
    tenant_id: str = ""
    """The tenant's id, which is never given to another tenant, unlike the name."""

    @property
    def is_admin(self) -> bool:
        """Return whether the caller may manage every tenant."""
        return ADMIN in self.scopes

    def manages(self, tenant: str) -> bool:
        """Return whether this caller may manage a tenant's adapters. For it, no others exist."""
        return self.is_admin or tenant == self.tenant

    def require_tenant(self, tenant: str) -> None:
        """Raise `NotFound`, as for a tenant that does not exist, unless the caller manages it."""
        if not self.manages(tenant):
            raise no_tenant(tenant)


class IssuedKey(NamedTuple):
    """A key that was just created. The record is what can be read again."""

    key: str
    record: KeyRecord


class Keys:
    """The registry's keys, looked up in the catalog in memory. So a key that another server
    creates or revokes counts here as soon as the catalog is refreshed."""

    def __init__(
        self,
        registry: Registry,
        clock: Callable[[], datetime] = now,
        policy: KeyPolicy = UNBOUNDED,
    ) -> None:
        """`clock`: what decides whether a key has expired. `policy`: how long keys may live."""
        self._registry, self._clock, self.policy = registry, clock, policy
        self._last_used: dict[str, datetime] = {}

    def create(self, tenant: str, scopes: Sequence[str]) -> str:
        """Create a key and return it. It cannot be read again."""
        return self.issue(tenant, scopes).key

    def issue(
        self,
        tenant: str,
        scopes: Sequence[str],
        *,
        label: str = "",
        expires_at: datetime | None = None,
        idempotency: Idempotency | None = None,
    ) -> IssuedKey:
        """Create a key, and return it with its record. Raises what `create_key` raises."""
        key = new_key()
        record = self._registry.apply(
            create_key,
            key,
            tenant,
            scopes,
            label=label,
            expires_at=expires_at,
            policy=self.policy,
            idempotency=idempotency,
        )
        return IssuedKey(key, record)

    def create_first_admin_key(self, file: Path) -> None:
        """If no admin key is valid, write a new one to `file`, which only its owner can read.

        The file is written before the record. After a crash between the two, a key is made again.
        """
        keys = self._registry.catalog.keys.values()
        if any(ADMIN in key.scopes and key.is_valid(self._clock()) for key in keys):
            return
        key = new_key()
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as handle:
            os.fchmod(descriptor, 0o600)
            handle.write(key + "\n")
            handle.flush()
            os.fsync(descriptor)
        if not self._registry.apply(create_first_admin_key, key, DEFAULT_TENANT):
            file.unlink()  # another server on the same database was first

    def install_admin_key(self, key: str) -> bool:
        """Take a key that the operator chose as an admin key. Returns False if it was revoked.

        Raises:
            InvalidKey: the text cannot be a key.
        """
        return self._registry.apply(install_admin_key, key, DEFAULT_TENANT)

    def bound_lives(self, operators_key: str = "") -> int:
        """Give an end to keys that live longer than the policy allows. Returns how many got one.

        The operator's own key, in a file of theirs, is not bounded: they replace it in the file.
        """
        if self.policy.longest is None:
            return 0
        _, _, rest = operators_key.partition("-")
        return self._registry.apply(bound_lives, self.policy, {rest.partition("-")[0]})

    def authenticate(self, presented: str | None) -> Caller:
        """Return the caller of a key. Raises `Unauthenticated` if the key is not valid."""
        if not presented:
            message = "no API key: send the header 'Authorization: Bearer <key>'"
            raise Unauthenticated(message, reason="missing")
        key = find_key(presented, self._registry.catalog.keys)
        if key is None:
            message = "this API key is not valid: check that it was copied whole"
            raise Unauthenticated(message, reason="unknown")
        return self.caller(key.id)

    def caller(self, key_id: str) -> Caller:
        """Return the caller of a key by its public part, for whoever has shown the key before.

        Raises:
            Unauthenticated: there is no such key, or it is not valid any more.
        """
        catalog, at = self._registry.catalog, self._clock()
        key = catalog.keys.get(key_id)
        if key is None:
            raise Unauthenticated("there is no such API key", reason="unknown")
        tenant = catalog.tenants.get(key.tenant)
        if tenant is None or not key.is_valid(at):
            reason = "revoked" if key.revoked_at else "expired"
            message = "this API key was revoked or has expired: ask for another"
            raise Unauthenticated(message, reason=reason)
        self._last_used[key.id] = at
        return Caller(key.tenant, key.scopes, key.id, tenant.id)

    def save_last_used(self) -> None:
        """Record when keys were last used. Requests do not do this, as they touch no disk."""
        last_used, self._last_used = self._last_used, {}
        if last_used:
            with self._registry.session() as session:
                note_use(session, dict(last_used))


def require_admin(request: Request) -> None:
    """A route's dependency: raise `Forbidden` unless the caller is an admin."""
    if not request.state.caller.is_admin:
        raise Forbidden(f"this API key lacks the scope {ADMIN}")
