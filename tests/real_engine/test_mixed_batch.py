"""Base and adapters in one batch of the real engine, against PEFT on the same weights.

The base has the traits of Llama 3.2: a tied head, `head_dim` given, scaled rotary embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.long_form import LONG
from tests.real_engine.conftest import RANDOM_ENGINE as ENGINE
from tests.real_engine.conftest import SLOTS
from tests.real_engine.mixed_batch import BatchEngine
from tests.real_engine.reference import NOISE, distance, load, make_adapter

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


@pytest.fixture(scope="module")
def adapters(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [
        make_adapter(random_base, tmp_path_factory.mktemp("adapter"), seed, **config)
        for seed, config in enumerate(ADAPTERS, start=1)
    ]


def batch(adapters: list[Path]) -> tuple[list[list[int]], list[Path | None]]:
    """Prompts short and long (chunked), base rows among those of each adapter."""
    generator = torch.Generator().manual_seed(2)
    models = [None, *adapters, None, adapters[-1], adapters[0], None]
    lengths = [3, 7, 150, 20, 300, 11, 5, 180, 9, 140, 6]
    prompts = [torch.randint(0, 320, (n,), generator=generator).tolist() for n in lengths]
    return prompts, models


Table = list[list[list[float]]]


@pytest.fixture(scope="module")
def table(random_base: Path, adapters: list[Path]) -> Callable[[BatchEngine], Table]:
    """For each of two equal batches, rows: requests; columns: the models (base first) against
    which they are compared."""

    def make(engine: BatchEngine) -> Table:
        prompts, models = batch(adapters)
        mixed = list(zip(prompts, models, strict=True))
        known = [load(random_base), *(load(random_base, adapter) for adapter in adapters)]
        return [
            [
                [distance(model, prompt, *pair) for model in known]
                for prompt, pair in zip(prompts, answers, strict=True)
            ]
            for answers in engine.answer([mixed, mixed])
        ]

    return make


def test_each_request_is_answered_by_its_own_model(
    random_engine: BatchEngine, table: Callable[[BatchEngine], Table], adapters: list[Path]
) -> None:
    assert len(adapters) > SLOTS, "slots are reused within the test"
    _, models = batch(adapters)
    for rows in table(random_engine):
        for model, row in zip(models, rows, strict=True):
            own = 0 if model is None else 1 + adapters.index(model)
            others = [distance for index, distance in enumerate(row) if index != own]
            assert row[own] < NOISE
            assert min(others) > 2 * NOISE


@pytest.mark.skipif(not LONG, reason="`make test-long` runs it")
def test_stock_operators_fail_this(
    random_base: Path, table: Callable[[BatchEngine], Table], adapters: list[Path]
) -> None:
    """Otherwise the test above could not fail."""
    _, models = batch(adapters)
    stock = BatchEngine(random_base, "stock", **ENGINE)
    try:
        wrong = [
            row[0] > 2 * NOISE
            for rows in table(stock)
            for model, row in zip(models, rows, strict=True)
            if model is None
        ]
    finally:
        stock.stop()
    assert any(wrong)
