"""The plan's arithmetic: against real models' tensors, and against published figures."""

from dataclasses import replace
from typing import Any

import pytest

from tests.llama import LLAMA31_8B, LLAMA31_70B
from training.data.recipe import make_recipe
from training.plan.memory import Shape, training_memory
from training.plan.planner import Hardware, advise, estimate, estimate_all, slots_and_context


def test_published_figures_of_llama_3() -> None:
    small, large = Shape.of(LLAMA31_8B), Shape.of(LLAMA31_70B)
    # huggingface.co/blog/llama31: KV cache of 16k tokens in FP16.
    assert small.kv_bytes_per_token * 16_000 / 2**30 == pytest.approx(1.95, rel=0.01)
    assert large.kv_bytes_per_token * 16_000 / 2**30 == pytest.approx(4.88, rel=0.01)
    recipe = make_recipe({"batch_size": 1, "gradient_checkpointing": True})
    peaks = {e.method: e.memory.peak / 1e9 for e in estimate_all(small, recipe, 512, 0, Hardware())}
    # The same page for training: about 16 GB with LoRA, 6 GB with QLoRA.
    assert 16 < peaks["lora"] < 20
    assert 6 < peaks["qlora"] < 9
    assert peaks["full"] > 6 * peaks["lora"]
    assert 10e6 < training_memory(small, recipe, 512).artefact < 100e6


def test_time_and_cost() -> None:
    shape, recipe = Shape.of(LLAMA31_8B), make_recipe({"method": "full"})
    hardware = Hardware(flops_per_second=100e12, price_per_hour=2.0)
    full = estimate(shape, recipe, 512, 1_000_000, hardware)
    assert full.seconds == pytest.approx(6 * 7.5e9 * 1e6 / 100e12, rel=0.01)
    assert full.seconds is not None
    assert full.cost == pytest.approx(full.seconds / 3600 * 2)
    lora, qlora = (
        estimate(shape, replace(recipe, method=method), 512, 1_000_000, hardware).seconds
        for method in ("lora", "qlora")
    )
    assert lora is not None
    assert qlora is not None
    assert full.seconds is not None
    assert lora < qlora < full.seconds
    assert estimate(shape, recipe, 512).seconds is None


def test_advice_follows_memory_data_and_target() -> None:
    recipe = make_recipe({"batch_size": 1, "gradient_checkpointing": True})
    estimates = estimate_all(Shape.of(LLAMA31_8B), recipe, 512, 0, Hardware())

    def choose(memory_gb: float, **options: Any) -> str:
        advice = advise(estimates, int(memory_gb * 1e9), **options)
        assert advice.reasons
        return advice.method

    assert choose(200) == choose(24) == "lora"
    assert choose(12) == "qlora"
    assert choose(4) == ""
    assert choose(200, task="domain", max_gap=0.02) == "full"
    assert choose(24, task="domain", max_gap=0.02) == "lora"
    assert choose(200, task="domain", max_gap=0.02, num_examples=300) == "lora"


def test_what_serving_takes() -> None:
    shape = Shape.of(LLAMA31_8B)
    assert shape.slot_bytes(16) == 2 * 16 * 32 * (2 * 8192 + 2 * 5120 + 3 * 18432)
    tokens = slots_and_context(shape, 24 * 10**9, 16, 4, 2 * shape.num_parameters)
    assert tokens == (24 * 10**9 - 2 * shape.num_parameters - 4 * shape.slot_bytes(16)) // 131072
    assert slots_and_context(shape, 10**9, 16, 4, 2 * shape.num_parameters) == 0
