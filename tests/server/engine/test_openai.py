"""What a request may say to the engine, and what is said for it."""

from typing import Any

from pydantic import BaseModel
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

from server.engine.openai import cache_salt

BODIES: dict[type[BaseModel], dict[str, Any]] = {
    ChatCompletionRequest: {"messages": [{"role": "user", "content": "hi"}]},
    CompletionRequest: {"prompt": "hi"},
    ResponsesRequest: {"input": "hi"},
    AnthropicMessagesRequest: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1},
}


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
