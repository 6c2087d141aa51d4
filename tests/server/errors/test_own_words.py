"""No switch, variable or address of others reaches a client."""

from __future__ import annotations

import re
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from server.errors.own_words import in_own_words, of_validator

ENGINE_SAYS = [
    (
        "prompt list length 5000 exceeds the maximum allowed count of 1024. To increase this "
        "limit, set the VLLM_MAX_COMPLETION_PROMPTS environment variable.",
        "prompt: at most 1024 prompts, not 5000",
    ),
    (
        "n must be at most 16384, got 20000. To increase this limit, set the VLLM_MAX_N_SEQUENCES "
        "environment variable.",
        "n: at most 16384, not 20000",
    ),
    (
        "Chat template is passed with request, but --trust-request-chat-template is not set.",
        "chat_template: templates of requests aren't used here: leave it out",
    ),
    (
        "You must set `--enable-prompt-embeds` to input `prompt_embeds`.",
        "prompt_embeds: embeddings aren't taken as prompts here: send text",
    ),
    (
        "thinking requires --reasoning-parser to be set",
        "thinking: this model doesn't think apart from its answer: leave it out",
    ),
    (
        '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
        "tools: this model can't call tools here: leave `tools` out",
    ),
    (
        "Input should be a valid list. For further information visit https://errors.pydantic.dev/x",
        "Input should be a valid list.",
    ),
    ("Start vLLM with --anything-new", "the request asks for something that isn't offered here"),
]


@pytest.mark.parametrize(("engine", "ours"), ENGINE_SAYS)
def test_what_the_engine_says_is_said_in_our_words(engine: str, ours: str) -> None:
    said = in_own_words(engine)
    assert said == ours
    assert not re.search(r"VLLM_|--|vLLM|https?://", said)


@pytest.mark.parametrize(
    "message", ["temperature must be non-negative, got -1", "stop: at most 4 strings, not 5"]
)
def test_other_messages_stay_as_they_are(message: str) -> None:
    assert in_own_words(message) == message


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"judge": ["speed"]}, "it must be 'error_rate' or 'evaluation'"),
        ({"judge": "speed"}, "it must be a valid list"),
        ({}, "it is missing"),
        ({"judge": [], "jury": []}, "there is no such field"),
    ],
)
def test_what_the_validator_says_follows_the_fields_name(value: object, said: str) -> None:
    class Body(BaseModel):
        model_config = ConfigDict(extra="forbid")
        judge: list[Literal["error_rate", "evaluation"]]

    with pytest.raises(ValidationError) as refused:
        Body.model_validate(value)
    assert of_validator(refused.value.errors()[0]["msg"]) == said


def test_other_words_of_the_validator_stay() -> None:
    assert of_validator("Value error, stop is too long") == "stop is too long"
    assert of_validator("JSON decode error") == "JSON decode error"
