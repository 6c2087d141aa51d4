"""The words of a request. Pure: a turn's seed decides its prompt."""

from __future__ import annotations

import random
from typing import Any

from loadtest.plan.scenario import Requests
from loadtest.plan.schedule import Turn

TOKENS = range(1000, 30_000)
"""Ids to draw from. The lowest are often special, and every Llama has more than these."""

_TEXT = (
    "the of and to in is that for it as was with on by not are from at this have an which you one "
    "all her she there would their we him been has when who will more no if out so what up its "
    "about into than them can only other time new some could these two may first then do any like"
)
WORDS = tuple(_TEXT.split())
"""Common words, about a token each."""

GOLDEN = (
    "The capital of France is",
    "Water boils at a temperature of",
    "One, two, three, four,",
    "The opposite of hot is",
    "Monday, Tuesday, Wednesday,",
    "A triangle has three",
    "The sun rises in the",
    "Once upon a time, there",
)
"""Prompts whose answers are recorded before a run, and checked during it."""


def request_body(
    model: str, turn: Turn, requests: Requests, history: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the JSON of a turn. `history` has the messages of the turns before."""
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": turn.tokens_out,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if requests.ignore_eos:
        body["ignore_eos"] = True
    if turn.golden is not None:
        words = random.Random(turn.seed).choices(WORDS, k=turn.tokens_in)
        prompt = " ".join([*words, GOLDEN[turn.golden]])
        return body | {"prompt": prompt, "logprobs": 5, "ignore_eos": True}
    if requests.api == "chat":
        return body | {"messages": history + _messages(turn, requests, model)}
    if turn.sample is not None:
        return body | {"prompt": turn.sample.messages[-1]["content"]}
    return body | {"prompt": _tokens(turn, requests, model)}


def _tokens(turn: Turn, requests: Requests, model: str) -> list[int]:
    """Return random tokens, so that only the prefix that is meant to be shared is cached."""
    shared = min(requests.shared_prefix_tokens, turn.tokens_in)
    prefix = random.Random(model).choices(TOKENS, k=shared) if shared else []
    return prefix + random.Random(turn.seed).choices(TOKENS, k=turn.tokens_in - shared)


def _messages(turn: Turn, requests: Requests, model: str) -> list[dict[str, Any]]:
    if turn.sample is not None:
        return turn.sample.messages
    shared = min(requests.shared_prefix_tokens, turn.tokens_in)
    words = random.Random(model).choices(WORDS, k=shared) if shared else []
    words += random.Random(turn.seed).choices(WORDS, k=turn.tokens_in - shared)
    return [{"role": "user", "content": " ".join(words)}]
