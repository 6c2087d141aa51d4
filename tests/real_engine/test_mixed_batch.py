"""Base and adapters in one batch of the real engine, against PEFT on the same weights.

The base has the traits of Llama 3.2: a tied head, `head_dim` given, scaled rotary embeddings.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from server.engine.environment import CPU_LORA_KERNELS
from tests.real_engine.llama31 import LLAMA32
from tests.real_engine.reference import NOISE, distance, load, make_adapter

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS: list[dict[str, Any]] = [
    {"r": 1, "lora_alpha": 1, "target_modules": ALL_LINEAR},
    {"r": 5, "lora_alpha": 10, "target_modules": ["q_proj", "up_proj"]},
    {"r": 8, "lora_alpha": 8, "target_modules": ALL_LINEAR, "use_rslora": True},
    {"r": 16, "lora_alpha": 32, "target_modules": ALL_LINEAR, "layers_to_transform": [1]},
    {"r": 64, "lora_alpha": 128, "target_modules": ["down_proj", "v_proj", "o_proj"]},
]
SLOTS = 3
"""Fewer than adapters: slots are reused within the test."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(**LLAMA32 | {"vocab_size": 320, "max_position_embeddings": 512})
    directory = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [
        make_adapter(base, tmp_path_factory.mktemp("adapter"), seed, **config)
        for seed, config in enumerate(ADAPTERS, start=1)
    ]


def batch(adapters: list[Path]) -> tuple[list[list[int]], list[Path | None]]:
    """Prompts short and long (chunked), base rows among those of each adapter."""
    generator = torch.Generator().manual_seed(2)
    models = [None, *adapters, None, adapters[4], adapters[0], None]
    lengths = [3, 7, 150, 20, 300, 5, 180, 9, 140, 6]
    prompts = [torch.randint(0, 320, (n,), generator=generator).tolist() for n in lengths]
    return prompts, models


def answer(base: Path, adapters: list[Path], operators: str) -> Any:
    prompts, models = batch(adapters)
    job = {
        "base": str(base),
        "prompts": prompts,
        "adapters": [str(model) if model else None for model in models],
        "times": 2,
        "engine": {
            "max_loras": SLOTS,
            "max_lora_rank": 64,
            "max_cpu_loras": 8,
            "max_model_len": 512,
            "max_num_batched_tokens": 256,
            "dtype": "bfloat16",
        },
    }
    environment = os.environ | {
        CPU_LORA_KERNELS: operators,
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    script = Path(__file__).with_name("mixed_batch.py")
    result = subprocess.run(
        [sys.executable, str(script)],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def table(base: Path, adapters: list[Path]) -> Any:
    """Rows: requests; columns: the models (base first) against which they are compared."""

    def make(operators: str) -> list[list[list[float]]]:
        prompts, _ = batch(adapters)
        models = [load(base), *(load(base, adapter) for adapter in adapters)]
        return [
            [
                [distance(model, prompt, *answer) for model in models]
                for prompt, answer in zip(prompts, answers, strict=True)
            ]
            for answers in answer(base, adapters, operators)
        ]

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
