"""How long keys live: rotation with an overlap, and the longest life that an operator allows.

The functions that take a `Change` are operations for `Registry.apply`.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select

from adapters_registry.errors import Conflict, NotFound
from adapters_registry.records.audit import write_entry
from adapters_registry.records.change import Change
from adapters_registry.records.idempotency import (
    Idempotency,
    find_result,
    fingerprint_of,
    keep_result,
)
from adapters_registry.records.keys import KeyPolicy, KeyRecord, create_key
from adapters_registry.records.tables import ApiKey, now


@dataclass(frozen=True)
class Rotated:
    """A key and the key that replaces it."""

    old: KeyRecord
    new: KeyRecord


def rotate_key(
    change: Change,
    key_id: str,
    new_key: str,
    overlap: timedelta,
    policy: KeyPolicy,
    *,
    expires_at: datetime | None = None,
    idempotency: Idempotency | None = None,
) -> Rotated:
    """Make a key that replaces another one, with its tenant, scopes and label.

    Both are valid for the time of `overlap`. Then the old one ends. Unless `expires_at` is given,
    the new key lives as long as the old one was to live.

    Raises:
        NotFound: there is no such key.
        Conflict: the key isn't valid any more, or was replaced before.
        InvalidKey: it was asked to live longer than keys may.
        KeyReused: the idempotency key came with another request before.
    """
    row = change.session.get(ApiKey, key_id)
    if row is None:
        raise NotFound(f"there is no key {key_id[:80]!r}")
    if idempotency:
        fingerprint = fingerprint_of("rotate", key_id, str(overlap), str(expires_at))
        if find_result(change, idempotency, fingerprint):
            raise Conflict(
                f"this request has already made the key {row.replaced_by}, which is not shown "
                "again: rotate that one"
            )
        keep_result(change, idempotency, fingerprint)
    at = now()
    if not KeyRecord.of(row).is_valid(at):
        raise Conflict(f"the key {key_id} was revoked or has expired: create a new one")
    if row.replaced_by is not None:
        raise Conflict(f"the key {key_id} was replaced by {row.replaced_by}: rotate that one")
    new = create_key(
        change,
        new_key,
        row.tenant,
        row.scopes,
        label=row.label,
        expires_at=expires_at or policy.cut(_as_long(row, at), at),
        policy=policy,
    )
    before = {"expires_at": row.expires_at and str(row.expires_at)}
    end = at + overlap
    row.expires_at = end if row.expires_at is None else min(end, row.expires_at)
    row.replaced_by, row.epoch = new.id, change.epoch
    after = {"expires_at": str(row.expires_at), "replaced_by": new.id}
    write_entry(change.session, "key.rotate", row.tenant, f"key {key_id}", before, after)
    return Rotated(KeyRecord.of(row), new)


def bound_lives(change: Change, policy: KeyPolicy, exempt: Container[str] = ()) -> int:
    """Give an end to the valid keys that live longer than the policy allows from now on.

    `exempt`: the ids of keys that keep their end. Returns how many keys were changed.
    """
    at, num_bounded = now(), 0
    for row in change.session.scalars(select(ApiKey).where(ApiKey.revoked_at.is_(None))):
        end = policy.cut(row.expires_at, at)
        if end == row.expires_at or row.id in exempt:
            continue
        before = {"expires_at": row.expires_at and str(row.expires_at)}
        row.expires_at, row.epoch = end, change.epoch
        after = {"expires_at": str(end)}
        write_entry(change.session, "key.bound", row.tenant, f"key {row.id}", before, after)
        num_bounded += 1
    return num_bounded


def _as_long(row: ApiKey, at: datetime) -> datetime | None:
    return None if row.expires_at is None else at + (row.expires_at - row.created_at)
