"""The header `Idempotency-Key` of a POST."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header, Request

from adapters_registry.records.idempotency import MAX_KEY_CHARACTERS, Idempotency
from server.errors import InvalidRequest

IdempotencyHeader = Annotated[
    str | None,
    Header(description="A repetition with this key changes nothing more, for a day."),
]


def idempotency(request: Request, key: str | None) -> Idempotency | None:
    """The key as this caller's; `InvalidRequest` if it is too long."""
    if key is None:
        return None
    if not 1 <= len(key) <= MAX_KEY_CHARACTERS:
        message = f"Idempotency-Key must have 1 to {MAX_KEY_CHARACTERS} characters"
        raise InvalidRequest(message, param="idempotency-key")
    return Idempotency(request.state.caller.key_id, key)
