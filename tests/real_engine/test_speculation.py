"""Guessed tokens change no answer: two servers are asked the same, and one of them guesses."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from server.engine.worker.decoder_cpu.kernel import MOST_PROMPT_ROWS
from tests.real_engine.questions import BRONCHITIS, FRANCE, LIGHTS, ask
from tests.real_engine.running_server import RunningServer

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")

Request = tuple[str, str, dict[str, Any]]
"""Model, text, and options."""
GUESSES = 5
# In vLLM's layers a row's last bits depend on how many rows are computed with it. They would take
# steps of more than 128 rows.
FLAGS = (
    *("--demo", "--cpu-base-kernels", "compiled", "--kv-cache-gib", "0.5"),
    *("--max-num-batched-tokens", str(MOST_PROMPT_ROWS), "--max-num-seqs", "16"),
)
COMMANDS = [
    LIGHTS,
    "Turn off the lights in the bedroom",
    "Turn on the lights in the bedroom",
    "Set the volume to 30 percent in the living room",
    "Put milk on the shopping list",
    "Turn off the desk lamp",
]
COUNT = "Count: one two three one two three one two three one two"
SCHEMA = {
    "type": "object",
    "properties": {
        "intent": {"enum": ["HassTurnOn", "HassTurnOff"]},
        "area": {"enum": ["kitchen", "bedroom"]},
    },
    "required": ["intent", "area"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, ...]]:
    """One that guesses nothing, and one that guesses."""
    guesses = ("--speculation-tokens", str(GUESSES))
    started = [
        RunningServer(tmp_path_factory.mktemp("speculation") / "var", *FLAGS, *more)
        for more in ((), guesses)
    ]
    try:
        for server in started:
            server.wait_until_ready()
        yield tuple(started)
    finally:
        for server in started:
            server.stop()


def counted(server: RunningServer, name: str) -> int:
    """How often the engine has guessed, or was right."""
    time.sleep(1.1)  # the page may be a second old
    page = server.admin("GET", "/metrics").text
    pattern = rf"^vllm:spec_decode_num_{name}_tokens_total{{.*}} (\S+)$"
    return int(sum(float(value) for value in re.findall(pattern, page, re.MULTILINE)))


def essence(answer: Any) -> Any:
    """What must be the same: text, why it ended, tokens, log-probabilities."""
    choice = answer.choices[0]
    said = [
        (each.token, each.logprob, [(top.token, top.logprob) for top in each.top_logprobs])
        for each in (choice.logprobs.content if choice.logprobs else [])
    ]
    usage = (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    return choice.message.content, choice.finish_reason, usage, said


def same(servers: tuple[RunningServer, ...], model: str, text: str, **options: object) -> Any:
    """Ask both, and return the answer."""
    plain, guessing = (ask(server, model, text, **options) for server in servers)
    assert essence(guessing) == essence(plain), (model, text, options)
    return guessing


@pytest.mark.parametrize(
    ("model", "texts"),
    [("smart-home", COMMANDS), ("base", [FRANCE, COUNT]), ("icd10-chapter", [BRONCHITIS])],
)
def test_greedy_answers_are_the_same(
    servers: tuple[RunningServer, ...], model: str, texts: list[str]
) -> None:
    guessing = servers[1]
    accepted, proposed = counted(guessing, "accepted"), counted(guessing, "draft")
    for options in ({}, {}, {"logprobs": True, "top_logprobs": 3}, {"max_tokens": 120}):
        for text in texts:
            same(servers, model, text, **options)
    assert counted(guessing, "accepted") - accepted >= 10
    assert counted(guessing, "draft") - proposed >= counted(guessing, "accepted") - accepted
    assert counted(servers[0], "draft") == 0


def test_most_tokens_of_answers_of_one_form_are_guessed(
    servers: tuple[RunningServer, ...],
) -> None:
    guessing = servers[1]
    for text in COMMANDS:
        same(servers, "smart-home", text)
    accepted = counted(guessing, "accepted")
    tokens = sum(
        ask(guessing, "smart-home", f"{text} please").usage.completion_tokens for text in COMMANDS
    )
    assert counted(guessing, "accepted") - accepted > tokens / 2


@pytest.mark.parametrize("model", ["smart-home", "base"])
def test_answers_end_where_they_must(servers: tuple[RunningServer, ...], model: str) -> None:
    whole = same(servers, model, LIGHTS, max_tokens=40)
    assert whole.usage.completion_tokens > 12
    for most in range(1, 13):
        answer = same(servers, model, LIGHTS, max_tokens=most)
        assert answer.usage.completion_tokens == most
        assert answer.choices[0].finish_reason == "length"
    text = whole.choices[0].message.content
    for stop in (text[4:7], text[9:10], text[-3:], '"'):
        answer = same(servers, model, LIGHTS, stop=[stop])
        assert stop not in answer.choices[0].message.content


def test_streams(servers: tuple[RunningServer, ...]) -> None:
    for model, text in (("smart-home", LIGHTS), ("base", COUNT)):
        whole = same(servers, model, text)
        options = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = list(ask(servers[1], model, text, **options))
        said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert said == whole.choices[0].message.content
        assert chunks[-1].usage == whole.usage


def test_grammars_hold(servers: tuple[RunningServer, ...]) -> None:
    schema = {"name": "command", "strict": True, "schema": SCHEMA}
    form = {"type": "json_schema", "json_schema": schema}
    for model in ("smart-home", "base"):
        for text in COMMANDS[:3] * 2:
            same(servers, model, text, response_format=form)


def test_a_long_context(servers: tuple[RunningServer, ...]) -> None:
    """Guesses are checked by the compiled decoder behind any number of tokens."""
    text = COUNT * 40
    answer = same(servers, "base", text, max_tokens=60)
    assert answer.usage.prompt_tokens > 512


def test_all_kinds_of_requests_beside_each_other(servers: tuple[RunningServer, ...]) -> None:
    """Who samples, or asks for what guesses can't have, gets what they would get alone."""
    commands: list[Request] = [("smart-home", text, {"max_tokens": 60}) for text in COMMANDS]
    requests: list[Request] = [
        *commands,
        ("base", COUNT, {"max_tokens": 60}),
        ("base", COUNT, {"temperature": 0.8, "seed": 1, "max_tokens": 60}),
        ("smart-home", LIGHTS, {"temperature": 1.5, "top_p": 0.9, "seed": 2, "max_tokens": 60}),
        ("base", COUNT, {"temperature": 0.9, "seed": 3, "extra_body": {"min_p": 0.1}}),
        ("base", COUNT, {"temperature": 0.9, "seed": 4, "extra_body": {"top_k": 5}}),
        ("base", COUNT, {"logit_bias": {"1046": -100}}),
        ("base", COUNT, {"frequency_penalty": 1.0}),
        ("base", COUNT, {"extra_body": {"min_tokens": 20}}),
        ("smart-home", LIGHTS, {"logprobs": True, "top_logprobs": 2}),
    ]
    plain, guessing = servers
    alone = [essence(ask(plain, *request[:2], **request[2])) for request in requests]
    for _ in range(2):
        with ThreadPoolExecutor(len(requests)) as pool:
            asked = pool.map(lambda each: ask(guessing, *each[:2], **each[2]), requests)
            together = [essence(answer) for answer in asked]
        for request, found, expected in zip(requests, together, alone, strict=True):
            assert found == expected, request
