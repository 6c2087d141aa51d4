"""Reads and checks a request's body: bytes, JSON, bounds, type. Each step may refuse it.

A request holds nothing else meanwhile: no quota, no slot, no place in a queue.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from fastapi import Request
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from server.api.intake.bounds import MAX_CONTAINERS, check_bounds
from server.api.intake.dialects import name_model
from server.api.intake.first_error import first_error
from server.api.intake.tools import leave_out_empty_tools, leave_out_hosted_tools
from server.api.intake.unsupported import refuse_unsupported
from server.engine.interface import Endpoint
from server.errors import ClientWentAway, InvalidRequest
from server.tenancy.bytes_in_flight import BytesInFlight, HeldBytes
from server.tenancy.demand import Demand, demand_of
from server.tenancy.service_tiers import ServiceTier, asked_tier
from server.workers import Workers

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
LARGE_BODY_BYTES = 64 * 1024
"""A larger body is decoded and validated in a thread, so that streams go on meanwhile."""
NUM_THREADS = 2
MAX_ID_CHARACTERS = 256
"""The longest name of a conversation or a user."""


@dataclass(frozen=True)
class Received:
    """A body that has passed every check which needs no registry and no engine."""

    request: Any
    """vLLM's type for the route."""
    model: str
    """Empty for the base, on a route that needs no model."""
    conversation: str | None
    demand: Demand
    tools_left_out: tuple[str, ...] = ()
    """The types of tools that were offered and that this server doesn't run."""
    service_tier: ServiceTier | None = None
    """The tier that it asks for, if it does."""


class Intake:
    """Reads and checks the bodies of all inference routes."""

    def __init__(self, bytes_in_flight: BytesInFlight) -> None:
        self._bytes_in_flight = bytes_in_flight
        self._workers = Workers("intake", NUM_THREADS)

    @asynccontextmanager
    async def received(
        self, request: Request, endpoint: Endpoint, tenant: str
    ) -> AsyncIterator[Received]:
        """Read and check a body; its bytes count as in flight while the context is open.

        Raises:
            InvalidRequest: the first thing that is wrong with it.
            OverQuota, Overloaded: too many bytes of bodies are held already.
        """
        _require_json(request)
        header = request.headers.get("x-conversation-id")
        path = request.url.path
        with self._bytes_in_flight.held(tenant) as held:
            raw = await _read(request, held)
            if len(raw) > LARGE_BODY_BYTES:
                received = await self._workers.run(_understand, raw, endpoint, header, path)
            else:
                received = _understand(raw, endpoint, header, path)
            del raw  # the answer may take minutes, and needs only what was made of it
            yield received


def _require_json(request: Request) -> None:
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    if media_type.lower() != "application/json" and not media_type.lower().endswith("+json"):
        error = InvalidRequest(f"send application/json, not {media_type[:100]!r}")
        error.status = 415
        raise error


async def _read(request: Request, held: HeldBytes) -> bytearray:
    body = bytearray()
    try:
        async for chunk in request.stream():
            held.add(len(chunk))
            body += chunk
    except ClientDisconnect as error:
        raise ClientWentAway("the client closed the connection") from error
    return body


def _understand(
    raw: bytearray, endpoint: Endpoint, conversation_header: str | None, path: str
) -> Received:
    body = _decode(raw)
    check_bounds(body)
    name_model(body)
    model = body.get("model")
    if model is None and not endpoint.needs_model:
        model = ""
    elif not isinstance(model, str) or not model:
        raise InvalidRequest("name a model: the base or an adapter", param="model")
    conversation = _conversation_of(body, conversation_header)
    refuse_unsupported(body)
    leave_out_empty_tools(body)
    left_out = leave_out_hosted_tools(body) if path == RESPONSES else ()
    tier = asked_tier(body, is_anthropic=path.startswith(MESSAGES))
    try:
        parsed = endpoint.parse(body)
    except ValidationError as error:
        raise first_error(error, body) from None
    return Received(parsed, model, conversation, demand_of(parsed, body), left_out, tier)


def _decode(raw: bytearray) -> dict[str, Any]:
    if raw.count(b"{") + raw.count(b"[") > 2 * MAX_CONTAINERS:
        # Decoded, each would take a hundred times its two bytes.
        raise InvalidRequest(f"the body has over {2 * MAX_CONTAINERS} opening brackets")
    try:
        body = json.loads(raw, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    except ValueError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object")
    return body


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text[:20]} is too large a number")
    return number


def _conversation_of(body: dict[str, Any], header: str | None) -> str | None:
    """Return what a request says about its conversation or, failing that, about its user.

    The header comes first, then the fields of OpenAI's and Anthropic's APIs.
    """
    if header:
        return _bounded("X-Conversation-Id", header)
    metadata, conversation = body.get("metadata"), body.get("conversation")
    named = {
        "conversation": conversation.get("id") if isinstance(conversation, dict) else conversation,
        "prompt_cache_key": body.get("prompt_cache_key"),
        "safety_identifier": body.get("safety_identifier"),
        "user": body.get("user"),
        "metadata.user_id": metadata.get("user_id") if isinstance(metadata, dict) else None,
    }
    ids = (_bounded(name, value) for name, value in named.items() if isinstance(value, str))
    return next(filter(None, list(ids)), None)


def _bounded(name: str, value: str) -> str:
    if len(value) > MAX_ID_CHARACTERS:
        raise InvalidRequest(f"{name} may have at most {MAX_ID_CHARACTERS} characters", param=name)
    return value
