"""Names the service tier in an answer, where each API has it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from typing import Any

from fastapi.responses import JSONResponse, Response, StreamingResponse

MESSAGES = "/v1/messages"
_STANDARD = {"default": "standard"}
"""What Anthropic calls a tier, if not as OpenAI does."""
_CHUNK = "data: {"
_ERROR = 'data: {"error"'
_START = "event: message_start\ndata: "


def name_tier(response: Response, path: str, tier: str) -> Response:
    """Return a response of chat, completions or messages that names the tier that was used."""
    is_anthropic = path == MESSAGES
    name = _STANDARD.get(tier, tier) if is_anthropic else tier
    if isinstance(response, StreamingResponse):
        in_event = _in_message_start if is_anthropic else _in_chunk
        response.body_iterator = _named(response.body_iterator, in_event, name)
    elif isinstance(response, JSONResponse) and response.status_code == 200:
        body = json.loads(bytes(response.body))
        _set(body.get("usage") if is_anthropic else body, name)
        return JSONResponse(body)
    return response


async def _named(
    events: AsyncIterable[Any], in_event: Callable[[str, str], str], name: str
) -> AsyncIterator[Any]:
    try:
        async for event in events:
            yield in_event(event, name) if isinstance(event, str) else event
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()


def _in_chunk(event: str, name: str) -> str:
    """Put the field first in the JSON. To decode each chunk would cost more for every token."""
    if not event.startswith(_CHUNK) or event.startswith(_ERROR):
        return event
    return f"{_CHUNK}{json.dumps('service_tier')}:{json.dumps(name)},{event[len(_CHUNK) :]}"


def _in_message_start(event: str, name: str) -> str:
    if not event.startswith(_START):
        return event
    values = json.loads(event[len(_START) :])
    _set(values.get("message", {}).get("usage"), name)
    return f"{_START}{json.dumps(values, ensure_ascii=False)}\n\n"


def _set(part: Any, name: str) -> None:
    if isinstance(part, dict):
        part["service_tier"] = name
