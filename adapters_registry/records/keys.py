"""API keys, of which only salted hashes are kept. Operations for `Registry.apply`.

A key is `lpx-<id>-<256 random bits>`. The id is public: it names the key in lists and in the audit
trail, and it finds the hash that the secret is compared with.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from adapters_registry.errors import Conflict, InvalidKey, NotFound
from adapters_registry.records.audit import write_entry
from adapters_registry.records.change import Change
from adapters_registry.records.idempotency import (
    Idempotency,
    find_result,
    fingerprint_of,
    keep_result,
)
from adapters_registry.records.tables import ApiKey, Tenant, now

INFERENCE, ADAPTERS, ADMIN = "inference", "adapters", "admin"
SCOPES = (INFERENCE, ADAPTERS, ADMIN)
PREFIX = "lpx"
MAX_LABEL_CHARACTERS = 64
_FORM = re.compile(r"lpx-[0-9a-f]{12}-[A-Za-z0-9_-]{32,128}")


CLOCK_SKEW = timedelta(minutes=5)
"""How far a client's clock may be ahead when it asks for the longest life."""


@dataclass(frozen=True)
class KeyPolicy:
    """The longest life of a key. None is without limit."""

    longest: timedelta | None = None

    def end_of(self, expires_at: datetime | None, at: datetime) -> datetime | None:
        """Return when a key ends that is made at a moment and was asked to end at another.

        Raises:
            InvalidKey: it was asked to live longer than keys may.
        """
        if self.longest is None or expires_at is None:
            return self.cut(expires_at, at)
        if expires_at > at + self.longest + CLOCK_SKEW:
            days = self.longest / timedelta(days=1)
            raise InvalidKey(f"a key may live {days:g} days on this server (LORAPLEX_MAX_KEY_DAYS)")
        return self.cut(expires_at, at)

    def cut(self, expires_at: datetime | None, at: datetime) -> datetime | None:
        """Return the earlier of an end and the latest end that is allowed at a moment."""
        if self.longest is None:
            return expires_at
        latest = at + self.longest
        return latest if expires_at is None else min(expires_at, latest)


@dataclass(frozen=True)
class KeyRecord:
    """A key without its secret, which is never stored."""

    id: str
    tenant: str
    scopes: frozenset[str]
    label: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """As of the last change of the key; see `note_use`."""
    salt: str
    secret_sha256: str
    replaced_by: str | None = None
    """The id of the key that a rotation has made instead of it."""

    @classmethod
    def of(cls, row: ApiKey) -> KeyRecord:
        """Return the record of a row."""
        return cls(
            id=row.id,
            tenant=row.tenant,
            scopes=frozenset(row.scopes),
            label=row.label,
            created_at=row.created_at,
            expires_at=row.expires_at,
            revoked_at=row.revoked_at,
            last_used_at=row.last_used_at,
            salt=row.salt,
            secret_sha256=row.secret_sha256,
            replaced_by=row.replaced_by,
        )

    def is_valid(self, at: datetime) -> bool:
        """Return whether the key is valid at a moment: neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)


UNBOUNDED = KeyPolicy()


def find_key(presented: str, keys: Mapping[str, KeyRecord]) -> KeyRecord | None:
    """Find the key whose id and secret match. It may be expired or revoked: check `is_valid`."""
    prefix, _, rest = presented.partition("-")
    key_id, _, secret = rest.partition("-")
    key = keys.get(key_id)
    # An unknown id takes as long as a wrong secret, so that time does not tell which ids exist.
    expected = key.secret_sha256 if key else "0" * 64
    given = _hash(key.salt if key else "0" * 32, secret)
    return key if hmac.compare_digest(given, expected) and prefix == PREFIX else None


def new_key() -> str:
    """Return a new random key."""
    return f"{PREFIX}-{secrets.token_hex(6)}-{secrets.token_urlsafe(32)}"


def create_key(
    change: Change,
    key: str,
    tenant: str,
    scopes: Sequence[str],
    *,
    label: str = "",
    expires_at: datetime | None = None,
    policy: KeyPolicy = UNBOUNDED,
    idempotency: Idempotency | None = None,
) -> KeyRecord:
    """Give a tenant a key that `new_key` has made. The policy may give it an end.

    Raises:
        NotFound: there is no such tenant.
        InvalidKey: a scope is unknown or missing, the label is too long, the end is in the past, or
            later than the policy allows.
        Conflict: the idempotency key came with this request before. A secret is shown only once.
        KeyReused: the idempotency key came with another request before.
    """
    _check(scopes, label, expires_at)
    owner = change.session.get(Tenant, tenant)
    if owner is None or owner.deleted:
        raise NotFound(f"there is no tenant {tenant[:80]!r}")
    if idempotency:
        fingerprint = fingerprint_of("key", tenant, sorted(scopes), label, str(expires_at))
        if find_result(change, idempotency, fingerprint):
            raise Conflict(
                "this request has already created a key, which is not shown again: create another"
            )
        keep_result(change, idempotency, fingerprint)
    expires_at = policy.end_of(expires_at, now())
    _, key_id, secret = key.split("-", 2)
    salt = secrets.token_hex(16)
    row = ApiKey(
        id=key_id,
        tenant=tenant,
        salt=salt,
        secret_sha256=_hash(salt, secret),
        scopes=sorted(set(scopes)),
        label=label,
        expires_at=expires_at,
        epoch=change.epoch,
    )
    change.session.add(row)
    change.session.flush()
    after = {"scopes": row.scopes, "label": label, "expires_at": expires_at and str(expires_at)}
    write_entry(change.session, "key.create", tenant, f"key {key_id}", None, after)
    return KeyRecord.of(row)


def create_first_admin_key(change: Change, key: str, tenant: str) -> bool:
    """Make a key the first admin key, unless an admin key is valid. Returns True if it was made.

    Of several servers that start together on one database, one makes it.
    """
    if any(map(_is_admin, change.session.scalars(select(ApiKey)))):
        return False
    create_key(change, key, tenant, [ADMIN, INFERENCE], label="first admin key")
    return True


def install_admin_key(change: Change, key: str, tenant: str) -> bool:
    """Make a key that an operator chose an admin key; nothing happens if it is one already.

    Returns False if it was revoked, or is a key of another kind: it stays what it is.

    Raises:
        InvalidKey: it does not have a key's form, is too short, or its public part is another
            key's.
    """
    if not _FORM.fullmatch(key):
        raise InvalidKey(
            "an admin key is 'lpx-', 12 hexadecimal digits, '-', and 32 to 128 letters or digits: "
            'echo "lpx-$(openssl rand -hex 6)-$(openssl rand -hex 32)" makes one'
        )
    _, key_id, secret = key.split("-", 2)
    row = change.session.get(ApiKey, key_id)
    if row is None:
        create_key(change, key, tenant, [ADMIN, INFERENCE], label="installed admin key")
        return True
    if not hmac.compare_digest(row.secret_sha256, _hash(row.salt, secret)):
        raise InvalidKey(f"there is another key with the public part {key_id}: choose a new one")
    return _is_admin(row)


def revoke_key(change: Change, key_id: str) -> None:
    """Revoke a key. It may be revoked already.

    Raises:
        NotFound: there is no such key.
        Conflict: it is the last valid admin key.
    """
    row = change.session.get(ApiKey, key_id)
    if row is None:
        raise NotFound(f"there is no key {key_id[:80]!r}")
    if row.revoked_at is None:
        others = select(ApiKey).where(ApiKey.id != key_id)
        if _is_admin(row) and not any(map(_is_admin, change.session.scalars(others))):
            raise Conflict("this is the last valid admin key: create another one first")
        _revoke(change, row)


def revoke_all(change: Change, tenant: str) -> None:
    """Revoke every key of a tenant that is about to be deleted.

    Raises:
        Conflict: the last valid admin key is among them.
    """
    keys = select(ApiKey).where(ApiKey.tenant == tenant, ApiKey.revoked_at.is_(None))
    rows = list(change.session.scalars(keys))
    others = change.session.scalars(select(ApiKey).where(ApiKey.tenant != tenant))
    if any(map(_is_admin, rows)) and not any(map(_is_admin, others)):
        raise Conflict("the tenant has the last valid admin key: create another one first")
    for row in rows:
        _revoke(change, row)


def read_keys(session: Session, tenant: str | None = None) -> list[KeyRecord]:
    """Return all keys, or those of a tenant, with their last use, the oldest first."""
    query = select(ApiKey).order_by(ApiKey.created_at, ApiKey.id)
    if tenant is not None:
        query = query.where(ApiKey.tenant == tenant)
    return [KeyRecord.of(row) for row in session.scalars(query)]


def note_use(session: Session, last_used: Mapping[str, datetime]) -> None:
    """Record when keys were used.

    This is not a change of the registry: other servers do not have to know of it at once.
    """
    for key_id, at in last_used.items():
        older = (ApiKey.last_used_at.is_(None)) | (ApiKey.last_used_at < at)
        session.execute(
            update(ApiKey).where(ApiKey.id == key_id, older).values(last_used_at=at),
            execution_options={"synchronize_session": False},
        )


def _revoke(change: Change, row: ApiKey) -> None:
    row.revoked_at, row.epoch = now(), change.epoch
    before, after = {"revoked": False}, {"revoked": True}
    write_entry(change.session, "key.revoke", row.tenant, f"key {row.id}", before, after)


def _is_admin(row: ApiKey) -> bool:
    return ADMIN in row.scopes and KeyRecord.of(row).is_valid(now())


def _check(scopes: Sequence[str], label: str, expires_at: datetime | None) -> None:
    if not scopes or set(scopes) - set(SCOPES):
        raise InvalidKey(f"scopes are one or more of {', '.join(SCOPES)}")
    if len(label) > MAX_LABEL_CHARACTERS or not label.isprintable():
        raise InvalidKey(f"a label has at most {MAX_LABEL_CHARACTERS} characters, all printable")
    if expires_at is not None and (expires_at.tzinfo is None or expires_at <= now()):
        raise InvalidKey("expires_at must be a time in the future, with its time zone")


def _hash(salt: str, secret: str) -> str:
    # The secret has 256 random bits, so a slow hash would add nothing but time.
    return hashlib.sha256(f"{salt}{secret}".encode(errors="replace")).hexdigest()
