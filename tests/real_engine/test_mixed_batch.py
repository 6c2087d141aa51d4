"""Base and adapters in one batch of the real engine, against PEFT on the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM

from tests.real_engine.mixed_batch import Answer, answer_batches

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS: list[dict[str, Any]] = [
    {"r": 1, "lora_alpha": 1, "target_modules": ALL_LINEAR},
    {"r": 5, "lora_alpha": 10, "target_modules": ["q_proj", "up_proj"]},
    {"r": 8, "lora_alpha": 8, "target_modules": ALL_LINEAR, "use_rslora": True},
    {"r": 16, "lora_alpha": 32, "target_modules": ALL_LINEAR, "layers_to_transform": [1]},
    {
        "r": 4,
        "lora_alpha": 4,
        "target_modules": ALL_LINEAR,
        "rank_pattern": {"q_proj": 12},
        "alpha_pattern": {"self_attn.q_proj": 24, "layers.0.mlp.down_proj": 16, "v_proj": 1},
    },
    {"r": 64, "lora_alpha": 128, "target_modules": ["down_proj", "v_proj", "o_proj"]},
]
SLOTS = 3
"""Fewer than adapters: slots are reused within the test."""
NOISE = 0.1
"""Bound on the mean difference of log-probabilities; bfloat16 gives a tenth of it."""


@pytest.fixture(scope="module")
def adapters(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    torch.manual_seed(1)
    paths = []
    for settings in ADAPTERS:
        model = get_peft_model(
            LlamaForCausalLM.from_pretrained(random_base), LoraConfig(**settings)
        )
        for name, weight in model.named_parameters():
            if "lora_" in name:
                size = 0.3 if "lora_A" in name else 0.8
                weight.data = torch.randn(weight.shape) * size / settings["r"] ** 0.5
        paths.append(tmp_path_factory.mktemp("adapter"))
        model.save_pretrained(paths[-1])
    return paths


def batch(adapters: list[Path]) -> tuple[list[list[int]], list[Path | None]]:
    """Prompts short and long (chunked), base rows among those of each adapter."""
    generator = torch.Generator().manual_seed(2)
    models = [None, *adapters, None, adapters[-1], adapters[0], None]
    lengths = [3, 7, 150, 20, 300, 11, 5, 180, 9, 140, 6]
    prompts = [torch.randint(0, 320, (n,), generator=generator).tolist() for n in lengths]
    return prompts, models


def answer(base: Path, adapters: list[Path], operators: str) -> list[list[Answer]]:
    prompts, models = batch(adapters)
    mixed = list(zip(prompts, models, strict=True))
    return answer_batches(
        base,
        [mixed, mixed],
        operators,
        max_loras=SLOTS,
        max_lora_rank=64,
        max_cpu_loras=8,
        max_num_batched_tokens=256,
        kv_cache_memory_bytes=64 << 20,
    )


def distances(base: Path, adapter: Path | None, answers: list[Any]) -> list[float]:
    """How far the engine's log-probabilities are from PEFT's, for one model, in float32."""
    model: Any = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    found = []
    for prompt, tokens, logprobs in answers:
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *tokens[:-1]]])).logits[0, len(prompt) - 1 :]
        expected = logits.log_softmax(-1)[range(len(tokens)), tokens]
        found.append(float((expected - torch.tensor(logprobs)).abs().mean()))
    return found


@pytest.fixture(scope="module")
def table(random_base: Path, adapters: list[Path]) -> Any:
    """Rows: requests; columns: the models (base first) against which they are compared."""

    def make(operators: str) -> list[list[list[float]]]:
        prompts, _ = batch(adapters)
        tables = []
        for answers in answer(random_base, adapters, operators):
            given = [(prompt, *pair) for prompt, pair in zip(prompts, answers, strict=True)]
            columns = [distances(random_base, model, given) for model in (None, *adapters)]
            tables.append([list(row) for row in zip(*columns, strict=True)])
        return tables

    return make


def test_each_request_is_answered_by_its_own_model(table: Any, adapters: list[Path]) -> None:
    _, models = batch(adapters)
    for rows in table("grouped"):
        for model, row in zip(models, rows, strict=True):
            own = 0 if model is None else 1 + adapters.index(model)
            others = [distance for index, distance in enumerate(row) if index != own]
            assert row[own] < NOISE
            assert min(others) > 3 * NOISE


def test_stock_operators_fail_this(table: Any, adapters: list[Path]) -> None:
    _, models = batch(adapters)
    wrong = [
        row[0] > 3 * NOISE
        for rows in table("stock")
        for model, row in zip(models, rows, strict=True)
        if model is None
    ]
    assert any(wrong)
