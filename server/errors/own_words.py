"""Rewrites libraries' messages about a request in this server's own words.

Answers should name neither the engine's switches, which a tenant can't set, nor a validator's web
site. From messages that aren't known here, sentences that name such things are removed.
"""

from __future__ import annotations

import re

_KNOWN = [
    (
        r"prompt list length (\d+) exceeds the maximum allowed count of (\d+)",
        r"prompt: at most \2 prompts, not \1",
    ),
    (r"(\w+) must be at most (\d+), got (\d+)", r"\1: at most \2, not \3"),
    (
        r"trust-request-chat-template",
        "chat_template: templates of requests aren't used here: leave it out",
    ),
    (r"enable-prompt-embeds", "prompt_embeds: embeddings aren't taken as prompts here: send text"),
    (r"enable-mm-embeds", "embeddings of images, audio and video aren't taken here"),
    (
        r"reasoning.?parser",
        "thinking: this model doesn't think apart from its answer: leave it out",
    ),
    (r"tool-call-parser", "tools: this model can't call tools here: leave `tools` out"),
    (r"max-logprobs", "logprobs: that is more than this server returns"),
    (r"RENDER_TIMEOUT", "messages: the model's chat template took too long for them"),
    (r"RESPONSES_API_STORE", "answers aren't kept here: send the earlier items as `input`"),
]
_OF_THE_VALIDATOR = [
    (r"^Value error, ", ""),
    (r"^Input should ", "it must "),
    (r"^Field required$", "it is missing"),
    (r"^Extra inputs are not permitted$", "there is no such field"),
]
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_FOREIGN = re.compile(r"VLLM_|\bvLLM\b|(?<![\w-])--[a-z]|https?://")
_NOTHING_LEFT = "the request asks for something that isn't offered here"


def of_validator(message: str) -> str:
    """Return what pydantic says of a field in words that follow the field's name."""
    for pattern, words in _OF_THE_VALIDATOR:
        message = re.sub(pattern, words, message)
    return message


def in_own_words(message: str) -> str:
    """Return the message without switches, variables and addresses that a client can't use."""
    if not _FOREIGN.search(message):
        return message
    for pattern, words in _KNOWN:
        if match := re.search(pattern, message):
            return match.expand(words)
    kept = [part for part in _SENTENCE.split(message) if not _FOREIGN.search(part)]
    return " ".join(kept).strip() or _NOTHING_LEFT
