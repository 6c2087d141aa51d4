"""What is wrong with a long list costs no more than what is wrong with one item."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from server.api.intake.first_error import first_error
from server.engine.openai import make_endpoints
from server.errors import InvalidRequest
from tests.server.engine.test_request_fields import BODIES

NUM_ITEMS = 20_000
MOST_ERRORS = 400
"""One item of `input` is tried as each of some 30 kinds, with several errors each."""
ENDPOINTS = make_endpoints(Path)
BAD_ITEMS: tuple[Any, ...] = ({}, {"a": 1}, {"type": "nonsense", "role": "nobody"}, 7.5, None, [[]])


def lists(schema: Any, definitions: dict[str, Any]) -> bool:
    """Say whether a field of this JSON schema may be a list."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rsplit("/", 1)[1]]
    kinds = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
    return schema.get("type") == "array" or any(lists(kind, definitions) for kind in kinds)


def assert_few_errors(error: ValidationError) -> None:
    assert error.error_count() <= MOST_ERRORS


def fields() -> Iterator[tuple[str, str]]:
    """Yield every route with each of its fields that may be a list."""
    for path, endpoint in ENDPOINTS.items():
        schema = endpoint.body.model_json_schema()
        for name, field in schema["properties"].items():
            if lists(field, schema.get("$defs", {})):
                yield path, name


@pytest.mark.parametrize("item", BAD_ITEMS, ids=str)
@pytest.mark.parametrize(("path", "field"), fields())
def test_a_bad_list_is_left_at_its_first_bad_item(path: str, field: str, item: Any) -> None:
    body = {"model": "base"} | BODIES[path] | {field: [item] * NUM_ITEMS}
    try:
        ENDPOINTS[path].parse(body)
    except ValidationError as caught:
        assert_few_errors(caught)
        param = first_error(caught, body).param
    except InvalidRequest as caught:  # vLLM's own, of validators that run before pydantic's
        param = caught.param
    else:
        return  # some fields take anything
    assert (param or field).startswith(field)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (path, {"messages": [{"role": "user", "content": [7] * NUM_ITEMS}]})
        for path in ("/v1/chat/completions", "/v1/messages/count_tokens")
        if path in ENDPOINTS
    ]
    + [("/v1/responses", {"input": [{"role": "user", "content": [{"type": "?"}] * NUM_ITEMS}]})],
)
def test_a_list_within_a_list_is_left_at_its_first_bad_item(
    path: str, body: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError) as caught:
        ENDPOINTS[path].parse({"model": "base"} | body)
    assert caught.value.error_count() <= MOST_ERRORS


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        (
            "/v1/chat/completions",
            {"messages": [*BODIES["/v1/messages"]["messages"], {"content": "hi"}]},
            "messages[1].role",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": 1}]},
            "messages[0].content",
        ),
        ("/v1/chat/completions", {"messages": "hi"}, "messages"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, 1]}]},
            "messages[0].content[1]",
        ),
        ("/v1/chat/completions", {"temperature": "warm"}, "temperature"),
        (
            "/v1/chat/completions",
            {"tools": [{"type": "function", "function": {}}]},
            "tools[0].function.name",
        ),
        ("/v1/completions", {"prompt": [1, "a"]}, "prompt[1]"),
        ("/v1/completions", {"prompt": {}}, "prompt"),
        ("/v1/responses", {"input": [{"role": "user", "content": 1}]}, "input[0].content"),
        (
            "/v1/responses",
            {"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]},
            "input[0].call_id",
        ),
        ("/v1/messages", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("/v1/messages", {"max_tokens": 0}, "max_tokens"),
        ("/v1/messages", {"tools": [{"name": "f"}]}, "tools[0].input_schema"),
    ],
)
def test_the_error_names_the_field(path: str, change: dict[str, Any], param: str) -> None:
    body = {"model": "base"} | BODIES[path] | change
    with pytest.raises(ValidationError) as caught:
        ENDPOINTS[path].parse(body)
    assert first_error(caught.value, body).param == param


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ValidationError) as caught:
        ENDPOINTS["/v1/chat/completions"].parse({"model": "base"})
    refusal = first_error(caught.value, {"model": "base"})
    assert (refusal.param, refusal.message) == ("messages", "messages: it is missing")


def test_lists_that_vllm_would_read_later_are_read_at_once() -> None:
    part = {"type": "text", "text": "hi"}
    request = ENDPOINTS["/v1/chat/completions"].parse(
        {"model": "base", "messages": [{"role": "user", "content": [part, part]}]}
    )
    assert request.messages[0]["content"] == [part, part]
