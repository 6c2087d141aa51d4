"""The header `Idempotency-Key` of a POST."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header, Request

from adapters_registry.records.idempotency import MAX_KEY_CHARACTERS, Idempotency
from adapters_registry.records.keys import ADAPTERS, ADMIN
from server.auth import Caller
from server.errors import InvalidRequest

IdempotencyHeader = Annotated[
    str | None,
    Header(description="For a day, a repetition with this key changes nothing more."),
]


def idempotency(request: Request, key: str | None) -> Idempotency | None:
    """Return the idempotency key of this tenant. Raises `InvalidRequest` if it is too long.

    It belongs to the tenant and the scope, and not to the API key. So a request that is repeated
    with a new API key is still a repetition.
    """
    caller: Caller = request.state.caller
    if key is None:
        return None
    if not 1 <= len(key) <= MAX_KEY_CHARACTERS:
        message = f"Idempotency-Key must have 1 to {MAX_KEY_CHARACTERS} characters"
        raise InvalidRequest(message, param="idempotency-key")
    return Idempotency(f"{caller.tenant_id}:{ADMIN if caller.is_admin else ADAPTERS}", key)
