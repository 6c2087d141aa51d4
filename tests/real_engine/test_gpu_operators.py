"""The GPU's LoRA operators in the real engine on CPU, in Triton's interpreter, against PEFT.

What the kernels compute has tests of its own; here vLLM gives them its slots, batches and stacks.
On a machine with a GPU `test_mixed_batch.py` runs them themselves.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.real_engine.mixed_batch import answer_batches
from tests.real_engine.reference import NOISE, distance, load, make_adapter

TRITON = Path(__file__).parents[2] / ".triton"
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS: list[dict[str, Any]] = [
    {"r": 5, "lora_alpha": 10, "target_modules": ["q_proj", "up_proj"]},
    {"r": 16, "lora_alpha": 32, "target_modules": ALL_LINEAR, "layers_to_transform": [1]},
    {"r": 4, "lora_alpha": 4, "target_modules": ALL_LINEAR, "rank_pattern": {"q_proj": 12}},
]
SLOTS = 2
"""Fewer than adapters: a slot is taken over within the test."""


@pytest.mark.skipif(torch.cuda.is_available(), reason="vLLM's GPU build has no CPU platform")
def test_each_request_is_answered_by_its_own_model(random_base: Path, tmp_path: Path) -> None:
    if not (TRITON / "triton").is_dir():
        assert "CI" not in os.environ, "`make test` installs Triton"
        pytest.skip("Triton is not installed: run `make .triton/.installed`")
    adapters = [
        make_adapter(random_base, tmp_path / str(seed), seed, **config)
        for seed, config in enumerate(ADAPTERS, start=1)
    ]
    generator = torch.Generator().manual_seed(2)
    models = [None, *adapters, adapters[0], None]
    prompts = [
        torch.randint(0, 320, (n,), generator=generator).tolist() for n in (3, 9, 40, 5, 6, 7)
    ]
    (answers,) = answer_batches(
        random_base,
        [list(zip(prompts, models, strict=True))],
        "interpreted",
        num_tokens=4,
        dtype="float16",  # the interpreter knows no bfloat16
        max_loras=SLOTS,
        max_lora_rank=16,
        max_cpu_loras=8,
        max_num_batched_tokens=64,
        kv_cache_memory_bytes=64 << 20,
        lora_target_modules=ALL_LINEAR,
    )
    known = [load(random_base), *(load(random_base, adapter) for adapter in adapters)]
    for prompt, model, answer in zip(prompts, models, answers, strict=True):
        distances = [distance(each, prompt, *answer) for each in known]
        own = distances.pop(0 if model is None else 1 + adapters.index(model))
        assert own < NOISE
        assert min(distances) > 2 * NOISE
