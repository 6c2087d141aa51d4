"""Idempotency keys: a POST that is repeated with its key gets the result of the first time.

This follows the IETF draft "The Idempotency-Key HTTP Header Field". The key is written in the
transaction of the change, so that a crash loses both or neither.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import delete

from adapters_registry.errors import KeyReused
from adapters_registry.records.change import Change
from adapters_registry.records.database import database_time
from adapters_registry.records.tables import IdempotencyKey

KEPT_FOR = timedelta(hours=24)
MAX_KEY_CHARACTERS = 255


@dataclass(frozen=True)
class Idempotency:
    """A client's key for one request. The same key of another caller is another key."""

    caller: str
    key: str


def fingerprint_of(*request: Any) -> str:
    """Return the sha256 of what the client asked for."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def find_result(
    change: Change, idempotency_key: Idempotency, fingerprint: str
) -> IdempotencyKey | None:
    """Return the result of an earlier request with this key, or None if there was none.

    Raises:
        KeyReused: the earlier request asked for something else.
    """
    expired = IdempotencyKey.created_at < database_time(change.session) - KEPT_FOR
    change.session.execute(delete(IdempotencyKey).where(expired))
    known = change.session.get(IdempotencyKey, (idempotency_key.caller, idempotency_key.key))
    if known is not None and known.fingerprint != fingerprint:
        raise KeyReused("this Idempotency-Key came with another request before: use a new one")
    return known


def is_known(change: Change, idempotency_key: Idempotency) -> bool:
    """Return whether a request with this key was carried out within the last day."""
    known = change.session.get(IdempotencyKey, (idempotency_key.caller, idempotency_key.key))
    return known is not None and known.created_at >= database_time(change.session) - KEPT_FOR


def keep_result(
    change: Change, idempotency_key: Idempotency, fingerprint: str, version_id: int | None = None
) -> None:
    """Record that a request was carried out, and the version that it created, if any."""
    row = IdempotencyKey(
        caller=idempotency_key.caller, key=idempotency_key.key, fingerprint=fingerprint
    )
    row.version_id, row.created_at = version_id, database_time(change.session)
    change.session.add(row)
