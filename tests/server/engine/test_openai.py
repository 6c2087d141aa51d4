"""What a request may say to the engine, and what is said for it."""

import json
from collections.abc import AsyncGenerator
from typing import Any

from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

from server.engine.openai import cache_salt, fill_in

BODIES: dict[type[BaseModel], dict[str, Any]] = {
    ChatCompletionRequest: {"messages": [{"role": "user", "content": "hi"}]},
    CompletionRequest: {"prompt": "hi"},
    ResponsesRequest: {"input": "hi"},
    AnthropicMessagesRequest: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1},
}

FIELDS = {"service_tier": "flex", "store": False}
"""What is known here and not to vLLM."""


def test_salts_of_tenants_never_meet() -> None:
    tenants, given = ("acme", "other", "a"), (None, "x", "acme", "other\\0x")
    salts = [cache_salt(tenant, salt) for tenant in tenants for salt in given]
    assert len(set(salts)) == len(salts)
    stolen = cache_salt("acme", None)
    assert cache_salt("other", stolen) not in salts
    assert cache_salt("acme", "x") == cache_salt("acme", "x"), "a tenant's own prefixes meet"


def test_every_api_takes_the_salt() -> None:
    for kind, body in BODIES.items():
        assert "cache_salt" in kind.model_fields
        request: Any = kind(model="base", **body)
        request.cache_salt = cache_salt("acme", request.cache_salt)
        assert request.cache_salt == cache_salt("acme", None)


async def test_answers_of_the_responses_api_say_what_vllm_does_not_know() -> None:
    whole = fill_in(JSONResponse({"id": "resp_1", "service_tier": "auto"}), FIELDS)
    assert json.loads(bytes(whole.body)) == {"id": "resp_1", **FIELDS}
    closed = []

    async def events() -> AsyncGenerator[str]:
        try:
            yield 'event: response.created\ndata: {"response":{"id":"r","service_tier":"auto"}}\n\n'
            yield 'event: response.output_text.delta\ndata: {"delta":"\\"object\\""}\n\n'
            yield 'event: response.completed\ndata: {"response":{"id":"r","output":["é"]}}\n\n'
        finally:
            closed.append(True)

    stream = fill_in(StreamingResponse(events()), FIELDS)
    assert isinstance(stream, StreamingResponse)
    created, delta, completed = [event async for event in stream.body_iterator]
    assert created == (
        'event: response.created\ndata: {"response": {"id": "r", "service_tier": "flex", '
        '"store": false}}\n\n'
    )
    assert delta == 'event: response.output_text.delta\ndata: {"delta":"\\"object\\""}\n\n'
    assert '"output": ["é"], "service_tier": "flex", "store": false' in str(completed)
    assert closed


async def test_a_client_that_goes_away_ends_the_engines_stream() -> None:
    closed = []

    async def events() -> AsyncGenerator[str]:
        try:
            while True:
                yield "event: response.output_text.delta\ndata: {}\n\n"
        finally:
            closed.append(True)

    stream = fill_in(StreamingResponse(events()), FIELDS)
    assert isinstance(stream, StreamingResponse)
    async for _ in stream.body_iterator:
        break
    assert isinstance(stream.body_iterator, AsyncGenerator)
    await stream.body_iterator.aclose()
    assert closed
