"""The service tier in answers, where OpenAI's and Anthropic's clients read it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator

import pytest
from anthropic.types import Message, RawMessageStartEvent
from fastapi.responses import JSONResponse, Response, StreamingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from server.engine.running.tier_names import name_tier

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
WHOLE = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": []}
CHUNK = {**WHOLE, "object": "chat.completion.chunk"}
MESSAGE = {
    **{"id": "1", "type": "message", "role": "assistant", "model": "m", "content": []},
    **{"stop_reason": None, "stop_sequence": None},
    "usage": {"input_tokens": 1, "output_tokens": 1},
}


async def streamed(path: str, tier: str, *events: str) -> list[str]:
    closed = []

    async def source() -> AsyncGenerator[str]:
        try:
            for event in events:
                yield event
        finally:
            closed.append(True)

    response = name_tier(StreamingResponse(source()), path, tier)
    assert isinstance(response, StreamingResponse)
    found = [str(event) async for event in response.body_iterator]
    assert closed
    return found


@pytest.mark.parametrize("tier", ["default", "flex", "priority"])
async def test_openais_answers(tier: str) -> None:
    body = {**WHOLE, "service_tier": None}
    whole = name_tier(JSONResponse(body), CHAT, tier)
    assert ChatCompletion.model_validate_json(bytes(whole.body)).service_tier == tier
    data = f"data: {json.dumps(CHUNK)}\n\n"
    done, error = "data: [DONE]\n\n", 'data: {"error": {"code": "x"}}\n\n'
    chunk, *rest = await streamed(CHAT, tier, data, error, done)
    found = ChatCompletionChunk.model_validate_json(chunk.removeprefix("data: "))
    assert found.service_tier == tier
    assert found.model_dump(include=set(CHUNK)) == CHUNK
    assert rest == [error, done]


@pytest.mark.parametrize(("tier", "name"), [("default", "standard"), ("priority", "priority")])
async def test_anthropics_answers(tier: str, name: str) -> None:
    whole = name_tier(JSONResponse(MESSAGE), MESSAGES, tier)
    assert Message.model_validate_json(bytes(whole.body)).usage.service_tier == name
    start = {"type": "message_start", "message": MESSAGE}
    other = 'event: content_block_delta\ndata: {"a": "message_start"}\n\n'
    first, second = await streamed(
        MESSAGES, tier, f"event: message_start\ndata: {json.dumps(start)}\n\n", other
    )
    head, _, data = first.partition("\ndata: ")
    assert head == "event: message_start"
    assert first.endswith("\n\n")
    found = RawMessageStartEvent.model_validate_json(data)
    assert found.message.usage.service_tier == name
    assert second == other


def test_errors_and_other_answers_stay() -> None:
    error = JSONResponse({"error": {}}, status_code=400)
    assert name_tier(error, CHAT, "flex") is error
    plain = Response("text")
    assert name_tier(plain, CHAT, "flex") is plain
