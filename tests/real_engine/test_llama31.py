"""Llama 3.1 itself, but for its size: format, arithmetic, tools, and a swap under a stream.

A tied head and an explicit `head_dim`, as in Llama 3.2, are `test_mixed_batch`'s.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.llama import BEGIN_OF_TEXT, EOM, EOT
from tests.real_engine.llama31 import LLAMA31, write_checkpoint
from tests.real_engine.reference import NOISE, distance, load, make_adapter
from tests.real_engine.running_server import RunningServer

ORIGINAL_CONTEXT = LLAMA31["rope_scaling"]["original_max_position_embeddings"]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city, now",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("llama31"), LLAMA31)


@pytest.fixture(scope="module")
def llama(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Its KV cache holds less than the base's 131,072 tokens, as on most machines."""
    flags = "--base", str(base), "--max-lora-rank", "8", "--kv-cache-gib", "0.02"
    server = RunningServer(tmp_path_factory.mktemp("llama") / "var", *flags)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    return AutoTokenizer.from_pretrained(base)


def chat(server: RunningServer, messages: list[dict[str, Any]], **options: Any) -> Any:
    body = {"model": "base", "messages": messages, "temperature": 0, "return_token_ids": True}
    answer = server.admin("POST", "/v1/chat/completions", json={**body, **options})
    assert answer.status_code == 200, answer.text
    return answer.json()


def complete(server: RunningServer, model: str, prompt: list[int]) -> tuple[list[int], list[float]]:
    """A greedy answer's tokens and their log-probabilities."""
    body = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 16, "logprobs": 0}
    body |= {"return_token_ids": True, "ignore_eos": True}
    answer = server.admin("POST", "/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return choice["token_ids"], choice["logprobs"]["token_logprobs"]


def random_tokens(count: int) -> list[int]:
    return random.Random(count).choices(range(BEGIN_OF_TEXT), k=count)


def test_a_chat_is_told_in_llamas_format(llama: RunningServer, tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Héllo"}]
    answer = chat(llama, messages, max_tokens=1)
    assert tokenizer.decode(answer["prompt_token_ids"]) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHéllo<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert answer["prompt_token_ids"].count(BEGIN_OF_TEXT) == 1
    assert answer["usage"]["prompt_tokens"] == len(answer["prompt_token_ids"])


@pytest.mark.parametrize("role", ["tool", "ipython"])
def test_tools_and_their_results_are_told_in_llamas_format(
    llama: RunningServer, tokenizer: Any, role: str
) -> None:
    call = {"name": "get_weather", "arguments": {"city": "Rome"}}
    tool_call = {"id": "c1", "type": "function", "function": call}
    sent = {**tool_call, "function": call | {"arguments": json.dumps(call["arguments"])}}
    asked = {"role": "user", "content": "Is it hot in Rome?"}
    result = {"role": role, "tool_call_id": "c1", "content": "31 degrees"}
    answer = chat(
        llama,
        [asked, {"role": "assistant", "tool_calls": [sent]}, result],
        tools=[WEATHER],
        max_tokens=1,
    )
    assert answer["prompt_token_ids"] == tokenizer.apply_chat_template(
        [asked, {"role": "assistant", "tool_calls": [tool_call]}, result],
        tools=[WEATHER],
        add_generation_prompt=True,
        return_dict=False,
    )
    text = tokenizer.decode(answer["prompt_token_ids"])
    assert '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Rome"}}<|eom_id|>' in text
    assert "<|start_header_id|>ipython<|end_header_id|>\n\n31 degrees<|eot_id|>" in text


def test_a_plain_prompt_begins_with_one_begin_of_text(llama: RunningServer) -> None:
    body = {"model": "base", "prompt": "Hi", "max_tokens": 1, "return_token_ids": True}
    answer = llama.admin("POST", "/v1/completions", json=body).json()
    prompt = answer["choices"][0]["prompt_token_ids"]
    assert (prompt[0], prompt.count(BEGIN_OF_TEXT), len(prompt)) == (BEGIN_OF_TEXT, 1, 3)


def test_each_of_the_end_tokens_ends_an_answer_and_no_other(llama: RunningServer) -> None:
    hello = [{"role": "user", "content": "Hello"}]

    def reason(token: int) -> str:
        answer = chat(llama, hello, max_tokens=2, logit_bias={token: 100})
        return str(answer["choices"][0]["finish_reason"])

    assert {reason(token) for token in LLAMA31["eos_token_id"]} == {"stop"}
    assert {EOM, EOT} < set(LLAMA31["eos_token_id"])
    assert reason(BEGIN_OF_TEXT + 2) == "length"


CALL = r'\{"name": "get_weather", "parameters": \{"city": "(Paris|Rome)"\}\}'


@pytest.mark.parametrize(
    "choice", [{"tool_choice": "required"}, {"structured_outputs": {"regex": CALL}}]
)
def test_a_tool_call_is_read_from_llamas_json(
    llama: RunningServer, tokenizer: Any, choice: dict[str, Any]
) -> None:
    """A random model calls a tool only when made to, and else writes white space for ever."""
    spaces = {tokenizer.convert_tokens_to_ids(token): -100 for token in "ĠĊĉč"}
    answer = chat(
        llama,
        [{"role": "user", "content": "Is it hot in Rome?"}],
        tools=[WEATHER],
        logit_bias=spaces,
        max_tokens=80,
        **choice,
    )
    answered = answer["choices"][0]
    text = tokenizer.decode(answered["token_ids"])
    assert text.startswith('{"name": "get_weather", "parameters": {"city":')
    (call,) = answered["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Rome")


def test_logprobs_are_those_of_transformers(llama: RunningServer, base: Path) -> None:
    short, long = random_tokens(40), random_tokens(ORIGINAL_CONTEXT + 800)
    answers = [(prompt, *complete(llama, "base", prompt)) for prompt in (short, long)]
    model = load(base)
    assert max(distance(model, *answer) for answer in answers) < NOISE
    unscaled = load(base, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    assert distance(unscaled, *answers[1]) > 2 * NOISE


def test_a_prompt_beyond_the_kv_cache_is_refused(llama: RunningServer) -> None:
    body = {"model": "base", "prompt": "word " * 20_000, "max_tokens": 1}
    answer = llama.admin("POST", "/v1/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert "not the base's 131072" in llama.log.read_text()


def test_a_swap_under_a_stream_changes_new_requests_only(
    llama: RunningServer, base: Path, tmp_path: Path
) -> None:
    everywhere = {"r": 8, "lora_alpha": 8, "target_modules": "all-linear"}
    paths = [make_adapter(base, tmp_path / f"v{seed}", seed, **everywhere) for seed in (1, 2)]
    models = [load(base), *(load(base, path) for path in paths)]
    prompt = random_tokens(60)

    def register(path: Path) -> None:
        files = [("files", (file.name, file.read_bytes())) for file in path.glob("adapter_[cm]*.*")]
        answer = llama.admin(
            "POST",
            "/admin/adapters?wait=true",
            data={"name": "swapped", "promote": "true"},
            files=files,
        )
        assert answer.status_code == 201, answer.text

    def assert_answered_by(number: int, answer: tuple[list[int], list[int], list[float]]) -> None:
        distances = [distance(model, *answer) for model in models]
        assert distances.pop(number) < NOISE
        assert min(distances) > 2 * NOISE

    def num_generated() -> float:
        metrics = llama.admin("GET", "/metrics").text.splitlines()
        line = next(line for line in metrics if line.startswith("vllm:generation_tokens_total"))
        return float(line.rpartition(" ")[2])

    before = num_generated()
    register(paths[0])
    tokens: list[int] = []
    logprobs: list[float] = []
    with llama.client().completions.create(
        model="swapped",
        prompt=prompt,
        temperature=0,
        max_tokens=20_000,
        logprobs=0,
        stream=True,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    ) as stream:
        chunks = iter(stream)

        def read(count: float) -> None:
            while len(tokens) < count:
                choice = next(chunks).choices[0]
                assert choice.logprobs is not None
                tokens.extend((choice.model_extra or {})["token_ids"])
                logprobs.extend(choice.logprobs.token_logprobs or [])

        read(5)
        register(paths[1])
        assert_answered_by(2, (prompt, *complete(llama, "swapped", prompt)))
        read(num_generated() - before + 16)
    assert_answered_by(1, (prompt, tokens[:16], logprobs[:16]))
    assert_answered_by(1, (prompt + tokens[:-16], tokens[-16:], logprobs[-16:]))
    assert_answered_by(1, (prompt, *complete(llama, "swapped@1", prompt)))
    assert_answered_by(0, (prompt, *complete(llama, "base", prompt)))
