"""The golden prompts, and the requests that ask them."""

from __future__ import annotations

from typing import Any

from loadtest.drive.request import Call, make_call
from loadtest.outcome.request_outcome import Outcome
from tests.soak.truth import Question

PROMPTS = ("Once upon a time, there", "Tell me a story.")
"""For completions, and for chat: beginnings that any adapter goes on with in its own way."""


def call_of(asked: Question, key: str) -> Call:
    """Return the request of a question: greedy, streamed, with log-probabilities."""
    body: dict[str, Any] = {
        "model": asked.model,
        "max_tokens": asked.tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    prompt = PROMPTS[asked.prompt]
    if asked.is_chat:
        path = "/v1/chat/completions"
        body |= {"messages": [{"role": "user", "content": prompt}]}
        body |= {"logprobs": True, "top_logprobs": 5}
    else:
        path = "/v1/completions"
        body |= {"prompt": prompt, "logprobs": 5}
    return make_call(path, body, key, hang_up_after=asked.hang_up_after, wants_all_tokens=True)


def outcome_of(asked: Question, now: float) -> Outcome:
    """Return the outcome that the answer to a question is read into."""
    return Outcome(asked.tenant, asked.model, now, now, now, asked.tokens)
