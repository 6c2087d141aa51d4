"""What becomes of an answer of vLLM's, and which field of a request its error names."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from starlette.responses import Response

from server.engine.errors import (
    NOT_COMPILED,
    TOO_COMPLEX,
    grammar_field,
    map_response,
    name_field,
)
from server.engine.request_fields import ALLOWED
from server.errors import APIError, ContextTooLong, InvalidRequest, Unavailable

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"


@pytest.mark.parametrize(
    ("path", "error", "param"),
    [
        (CHAT, InvalidRequest("bad", param="messages[0].role"), "messages[0].role"),
        (CHAT, ContextTooLong("too long", param="input_tokens"), "messages"),
        (COMPLETIONS, ContextTooLong("too long"), "prompt"),
        (RESPONSES, ContextTooLong("too long"), "input"),
        (COMPLETIONS, InvalidRequest("Token id 77 is out of vocabulary"), "prompt"),
        (CHAT, InvalidRequest("Unsupported chat content part type: 'x'"), "messages"),
        (CHAT, InvalidRequest("too many", param="logprobs"), "top_logprobs"),
        (COMPLETIONS, InvalidRequest("too many", param="logprobs"), "logprobs"),
        (COMPLETIONS, InvalidRequest("logit_bias has the id 7"), "logit_bias"),
        (COMPLETIONS, InvalidRequest("n, or stop_token_ids: bad"), "stop_token_ids"),
        (COMPLETIONS, InvalidRequest("min_tokens is over max_tokens=16"), "min_tokens"),
        (COMPLETIONS, InvalidRequest("of this model", param="extra_args"), None),
        (COMPLETIONS, Unavailable("the prompt"), None),
    ],
)
def test_the_field_is_named(path: str, error: APIError, param: str | None) -> None:
    assert name_field(error, ALLOWED[path]).param == param


@pytest.mark.parametrize("begins", [NOT_COMPILED, TOO_COMPLEX])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"structured_outputs": {"regex": "("}, "tools": []}, "structured_outputs"),
        (
            {"structured_outputs": None, "response_format": {"type": "json_schema"}},
            "response_format",
        ),
        ({"text": {"format": {}}}, "text"),
        ({"output_config": {"format": {}}}, "output_config"),
        ({"tools": [{}], "response_format": None}, "tools"),
        ({}, None),
    ],
)
def test_an_error_about_a_grammar_names_the_field_that_it_comes_from(
    begins: str, fields: dict[str, object], param: str | None
) -> None:
    error = InvalidRequest(f"{begins}: the tools of the model")
    named = name_field(error, ALLOWED[CHAT], grammar_field(SimpleNamespace(**fields)))
    assert named.param == param


@pytest.mark.parametrize("response", [None, Response()], ids=["0.32", "0.33"])
def test_an_answer_to_a_client_that_went_away(response: Response | None) -> None:
    assert map_response(response).status_code == 499


def test_an_answer_stays_as_it_is() -> None:
    response = Response(b"{}", media_type="application/json")
    assert map_response(response) is response
