"""How a stream ends if the engine fails while it answers: with one error, in the route's own shape.

vLLM's handlers differ in this. One tells of its own internals, one of a validator that its error
message failed, and one breaks the connection off.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from typing import Any

from fastapi.responses import Response, StreamingResponse

from server.engine.errors import map_exception
from server.errors import APIError, error_response

MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
_ERRORS = ('data: {"error"', "event: error\n", "event: response.failed\n")
"""How vLLM's events of errors begin."""


def end_with_error(
    response: Response, path: str, failure: Callable[[], APIError | None]
) -> Response:
    """Let a streamed answer end with the error that `failure` returns, once there is one."""
    if isinstance(response, StreamingResponse):
        response.body_iterator = _ended(response.body_iterator, path, failure)
    return response


async def _ended(
    events: AsyncIterable[Any], path: str, failure: Callable[[], APIError | None]
) -> AsyncIterator[Any]:
    """Pass on the events. vLLM sends each in one piece; one of an error is the last that counts."""
    num_events, begun = 0, ""
    raised: APIError | None = None
    try:
        async for event in events:
            if isinstance(event, str) and event.startswith(_ERRORS) and failure() is not None:
                break
            begun = begun or str(event)
            num_events += 1
            yield event
        else:
            return
    except Exception as error:
        raised = map_exception(error)
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()
    if (told := failure() or raised) is not None:
        for last in _said(told, path, begun, num_events):
            yield last


def _said(error: APIError, path: str, begun: str, num_events: int) -> list[str]:
    body = bytes(error_response(error, path).body).decode()
    if path == MESSAGES:
        return [f"event: error\ndata: {body}\n\n"]
    if path != RESPONSES:
        return [f"data: {body}\n\n", "data: [DONE]\n\n"]
    answer = json.loads(begun.partition("\ndata: ")[2] or "{}").get("response", {})
    failed = {
        "type": "response.failed",
        "sequence_number": num_events,
        "response": answer
        | {"status": "failed", "error": {"code": error.code, "message": error.message}},
    }
    return [f"event: response.failed\ndata: {json.dumps(failed)}\n\n"]
