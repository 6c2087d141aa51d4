"""Which fields reach vLLM: a list by name, compared with what vLLM has."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from vllm.entrypoints.generate.base.protocol import StreamOptions
from vllm.sampling_params import StructuredOutputsParams

from server.engine.openai import make_endpoints
from server.engine.request_fields import ALLOWED, NESTED, NOT_FOR_CLIENTS

ENDPOINTS = make_endpoints(Path)
MESSAGES = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 1},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
    "/tokenize": {"messages": MESSAGES},
    "/detokenize": {"tokens": [1]},
}


@pytest.mark.parametrize("path", ENDPOINTS)
def test_every_field_that_vllm_has_is_either_allowed_or_kept_out(path: str) -> None:
    fields = set(ENDPOINTS[path].body.model_fields)
    assert not ALLOWED[path] & NOT_FOR_CLIENTS
    assert fields - NOT_FOR_CLIENTS == ALLOWED[path], "vLLM was upgraded: read what is new"


def test_what_is_tokenized_has_either_of_two_types() -> None:
    parse = ENDPOINTS["/tokenize"].parse
    assert type(parse({"prompt": "hi"})).__name__ == "TokenizeCompletionRequest"
    assert type(parse({"messages": MESSAGES})).__name__ == "TokenizeChatRequest"
    assert parse({"prompt": "hi"}).add_special_tokens
    with pytest.raises(ValidationError):
        parse({"model": "base"})


def test_vllms_nested_objects_have_the_known_fields() -> None:
    assert set(StreamOptions.model_fields) == NESTED["stream_options"]
    fields = {field.name for field in dataclasses.fields(StructuredOutputsParams)}
    assert {name for name in fields if not name.startswith("_")} == NESTED["structured_outputs"]


@pytest.mark.parametrize("path", ENDPOINTS)
def test_what_steers_the_engine_is_ignored_and_so_are_unknown_fields(path: str) -> None:
    plain = ENDPOINTS[path].parse({"model": "base"} | BODIES[path])
    steering = dict.fromkeys(NOT_FOR_CLIENTS, "another's") | {"surprise": [1]}
    request = ENDPOINTS[path].parse({"model": "base"} | BODIES[path] | steering)
    assert request.model_dump(exclude={"request_id"}) == plain.model_dump(exclude={"request_id"})
    assert getattr(request, "request_id", "") != "another's"
    assert not request.model_extra


def test_nested_fields_that_steer_the_engine_are_ignored() -> None:
    request = ENDPOINTS["/v1/completions"].parse(
        {"model": "base", "prompt": "a", "structured_outputs": {"regex": "a", "_backend": "mine"}}
    )
    assert (request.structured_outputs.regex, request.structured_outputs._backend) == ("a", None)
