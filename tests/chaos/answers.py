"""Streamed answers, and what says whose they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx

Said = frozenset[tuple[str, str]]
"""The names that an answer gave for its model, each with a text."""
Ask = Callable[[httpx.Client, str, str], Said]
"""Asks the server at a URL for an answer of a model."""


class Refused(Exception):
    """There was no whole answer."""


def ask(http: httpx.Client, url: str, model: str) -> Said:
    """Ask a server with the fake engine; the texts are the digests of what it has loaded.

    Raises:
        Refused: the answer was an error, broke off, or never came.
    """
    events = _events(http, url, {"model": model})
    return frozenset((event["model"], event["choices"][0]["text"]) for event in events)


def ask_for_text(http: httpx.Client, url: str, model: str) -> Said:
    """Ask a server with a real engine for 40 tokens; the text is the whole answer.

    Raises:
        Refused: the answer was an error, broke off, or never came.
    """
    prompt = "Tell me at last, who are you? " * 6
    body = {"model": model, "prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0}
    events = list(_events(http, url, body))
    text = "".join(event["choices"][0]["text"] for event in events)
    return frozenset((event["model"], text) for event in events)


NUM_TOKENS = 40


def _events(http: httpx.Client, url: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what a stream says, if it comes to its end."""
    try:
        with http.stream("POST", f"{url}/v1/completions", json={**body, "stream": True}) as answer:
            if answer.status_code != 200:
                raise Refused(f"{answer.status_code} {answer.read().decode()[:200]}")
            for line in answer.iter_lines():
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    return
                if data:
                    event = json.loads(data)
                    if "model" not in event:
                        raise Refused(data[:200])
                    yield event
    except httpx.HTTPError as error:
        raise Refused(repr(error)) from error
    raise Refused("the stream ended without its last event")
