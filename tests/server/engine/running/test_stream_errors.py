"""A stream whose engine dies ends with one error, in the shape of its route."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from fastapi.responses import StreamingResponse
from vllm.v1.engine.exceptions import EngineDeadError

from server.engine.running.stream_errors import end_with_error
from server.errors import APIError, Unavailable

DEAD = Unavailable("the engine died while answering; it is being restarted, try again")
CHUNK = 'data: {"choices": []}\n\n'
CREATED = 'event: response.created\ndata: {"response": {"id": "resp_1", "model": "base"}}\n\n'
DELTA = 'event: response.output_text.delta\ndata: {"delta": "a"}\n\n'


async def ended(path: str, events: list[Any], failure: APIError | None = DEAD) -> list[str]:
    closed = []

    async def stream() -> AsyncGenerator[str]:
        try:
            for event in events:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            closed.append(True)

    response = end_with_error(StreamingResponse(stream()), path, lambda: failure)
    assert isinstance(response, StreamingResponse)
    found = [str(event) async for event in response.body_iterator]
    assert closed
    return found


def data_of(event: str) -> Any:
    return json.loads(event.partition("data: ")[2])


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_chat_and_completions(path: str) -> None:
    of_vllm = 'data: {"error": {"message": "EngineCore encountered an issue."}}\n\n'
    chunk, error, done = await ended(path, [CHUNK, of_vllm, "data: [DONE]\n\n"])
    assert (chunk, done) == (CHUNK, "data: [DONE]\n\n")
    assert data_of(error)["error"] == {
        "message": DEAD.message,
        "type": "service_unavailable_error",
        "param": None,
        "code": "engine_unavailable",
    }


async def test_messages() -> None:
    of_vllm = 'event: error\ndata: {"error": {"message": "2 validation errors"}}\n\n'
    _, error = await ended("/v1/messages", [CHUNK, of_vllm, "data: [DONE]\n\n"])
    assert error.startswith("event: error\n")
    assert data_of(error)["type"] == "error"
    assert data_of(error)["error"]["type"] == "overloaded_error"
    assert data_of(error)["error"]["message"] == DEAD.message


@pytest.mark.parametrize("failure", [DEAD, None])
async def test_responses_end_properly(failure: APIError | None) -> None:
    *before, error = await ended("/v1/responses", [CREATED, DELTA, EngineDeadError()], failure)
    assert before == [CREATED, DELTA]
    assert error.startswith("event: response.failed\n")
    assert data_of(error) == {
        "type": "response.failed",
        "sequence_number": 2,
        "response": {
            "id": "resp_1",
            "model": "base",
            "status": "failed",
            "error": {"code": "engine_unavailable", "message": DEAD.message},
        },
    }


async def test_what_ends_well_and_errors_of_others_stay_as_they_are() -> None:
    events = [CHUNK, 'data: {"error": {"message": "n is too large"}}\n\n', "data: [DONE]\n\n"]
    assert await ended("/v1/completions", events, None) == events
    assert await ended("/v1/completions", [CHUNK, "data: [DONE]\n\n"]) == [
        CHUNK,
        "data: [DONE]\n\n",
    ]
