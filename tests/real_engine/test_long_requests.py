"""Requests of many choices, and requests that run for too long, on an engine with little room."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.real_engine.questions import FRANCE, say
from tests.real_engine.running_server import RunningServer

NUM_CHOICES = 10
REQUEST_SECONDS = 10
FLAGS = ("--max-running", "4", "--request-seconds", str(REQUEST_SECONDS))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path_factory.mktemp("small") / "var", *FLAGS)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def test_more_choices_than_run_at_a_time(small: RunningServer) -> None:
    options: dict[str, Any] = {
        "model": "base",
        "messages": say(FRANCE),
        "n": NUM_CHOICES,
        "max_tokens": 4,
        "seed": 7,
        "temperature": 2.0,
    }
    whole = small.client().chat.completions.create(**options)
    texts = {choice.index: choice.message.content for choice in whole.choices}
    assert list(texts) == list(range(NUM_CHOICES))
    assert len(set(texts.values())) > NUM_CHOICES / 2, "each choice has a seed of its own"
    one = small.client().chat.completions.create(**options | {"n": 1})
    assert whole.usage.prompt_tokens == one.usage.prompt_tokens
    stream = small.client().chat.completions.create(stream=True, **options)
    streamed = dict.fromkeys(range(NUM_CHOICES), "")
    ends = set()
    for chunk in stream:
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                ends.add(choice.index)
    assert ends == set(range(NUM_CHOICES))
    assert all(streamed.values())


def test_a_request_that_runs_for_too_long_is_ended(small: RunningServer) -> None:
    client = small.client()
    options: dict[str, Any] = {
        "model": "base",
        "messages": say("Count to one million, slowly."),
        "max_tokens": 7000,
        "extra_body": {"ignore_eos": True},
    }

    def unstreamed() -> None:
        client.chat.completions.create(**options)

    def streamed() -> None:
        for chunk in client.chat.completions.create(stream=True, **options):
            assert chunk.choices

    with ThreadPoolExecutor() as threads:
        whole, stream = threads.submit(unstreamed), threads.submit(streamed)
        with pytest.raises(openai.APIStatusError) as refused:
            whole.result()
        with pytest.raises(openai.APIError, match=f"ended after {REQUEST_SECONDS} s"):
            stream.result()
    assert refused.value.status_code == 504
    assert refused.value.code == "request_timeout"
    answer = client.chat.completions.create(model="base", messages=say(FRANCE), max_tokens=2)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2, "the engine is free again"
