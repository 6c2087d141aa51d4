"""A 4-bit base made by the command, served with two adapters, against PEFT on the same weights."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from server.bundled_base import ensure_bundled_base
from server.process.demo import DEMO_DIR
from tests.four_bit import dequantized
from tests.real_engine.questions import (
    BRONCHITIS,
    BRONCHITIS_ANSWER,
    FRANCE,
    say,
)
from tests.real_engine.running_server import RunningServer

ADAPTERS = ("smart-home", "icd10-chapter")
MODELS = ("base", *ADAPTERS)
MILK = "Add milk to my shopping list"
MILK_ANSWER = {"intent": "HassShoppingListAddItem", "item": "milk"}
NOISE = 0.1
"""Bound on the mean difference of log-probabilities between the engine in BF16 and float32."""


@dataclass(frozen=True)
class Said:
    """One greedy answer: its text, its tokens after which prompt, and how likely each was."""

    text: str
    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("four-bit") / "SmolLM2-135M-Instruct-W4A16"
    command = [str(Path(sys.executable).with_name("loraplex")), "quantize", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def four_bit_server(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    server = RunningServer(
        tmp_path_factory.mktemp("server") / "var",
        *("--base", str(checkpoint), "--local-roots", str(DEMO_DIR)),
        *("--cpu-base-kernels", "compiled"),
    )
    try:
        server.wait_until_ready()
        for name in ADAPTERS:
            body = {"name": name, "source": str(DEMO_DIR / name)}
            answer = server.admin("POST", "/admin/adapters?wait=true", json=body)
            assert answer.status_code == 201, answer.text
        yield server
    finally:
        server.stop()


def ask(server: RunningServer, requests: list[tuple[str, str]]) -> list[Said]:
    """All at once: the engine answers them in one batch."""

    async def one(client: Any, model: str, question: str) -> Said:
        answer = await client.chat.completions.create(
            model=model,
            messages=say(question),
            temperature=0,
            max_tokens=24,
            logprobs=True,
            extra_body={"return_token_ids": True},
        )
        choice = answer.choices[0]
        logprobs = [entry.logprob for entry in choice.logprobs.content]
        return Said(choice.message.content, answer.prompt_token_ids, choice.token_ids, logprobs)

    async def all_of_them() -> list[Said]:
        async with server.async_client() as client:
            return await asyncio.gather(*(one(client, *request) for request in requests))

    return asyncio.run(all_of_them())


@pytest.fixture(scope="module")
def mixed(four_bit_server: RunningServer) -> dict[tuple[str, str], Said]:
    requests = [(model, text) for text in (FRANCE, MILK, BRONCHITIS) for model in MODELS]
    return dict(zip(requests, ask(four_bit_server, requests), strict=True))


def test_base_and_adapters_answer_right_side_by_side(mixed: dict[tuple[str, str], Said]) -> None:
    assert "Paris" in mixed["base", FRANCE].text
    assert json.loads(mixed["smart-home", MILK].text) == MILK_ANSWER
    assert mixed["icd10-chapter", BRONCHITIS].text == BRONCHITIS_ANSWER


def test_each_row_is_the_merged_models(
    mixed: dict[tuple[str, str], Said], checkpoint: Path
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(
        ensure_bundled_base(), dtype=torch.float32
    ).eval()
    weights = {name: weight.float() for name, weight in dequantized(checkpoint).items()}
    assert not model.load_state_dict(weights, strict=False).unexpected_keys
    distances = {"base": [distance(model, said) for said in mixed.values()]}
    for name in ADAPTERS:
        model = PeftModel.from_pretrained(model, DEMO_DIR / name)
        model.merge_adapter()
        distances[name] = [distance(model, said) for said in mixed.values()]
        model.unmerge_adapter()
        model = model.unload()
    for row, (asked, _) in enumerate(mixed):
        others = [distances[name][row] for name in MODELS if name != asked]
        assert distances[asked][row] < NOISE
        assert min(others) > 3 * NOISE


def distance(model: Any, said: Said) -> float:
    """How far the engine's log-probabilities are from this model's, on the average."""
    ids = torch.tensor([said.prompt + said.tokens[:-1]])
    with torch.inference_mode():
        logits = model(ids).logits[0, len(said.prompt) - 1 :]
    expected = logits.log_softmax(-1)[range(len(said.tokens)), said.tokens]
    return float((expected - torch.tensor(said.logprobs)).abs().mean())
