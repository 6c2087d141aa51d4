"""No switch, variable or address of others reaches a client."""

from __future__ import annotations

import re

import pytest

from server.errors.own_words import in_own_words

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
