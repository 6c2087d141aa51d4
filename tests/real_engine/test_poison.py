"""A poisonous adapter that got past the gate spoils its own answers, and nobody else's."""

import math
import random
from pathlib import Path

import numpy as np
import pytest

from adapters_registry.check.base import BaseSpec
from tests.adapter_recipe import ALL_MODULES, Recipe, each
from tests.real_engine.conftest import NUM_KV_BLOCKS
from tests.real_engine.mixed_batch import Answer, Batch, BatchEngine

POISONS = {
    "NaN": Recipe(modules=ALL_MODULES, bend=each(lambda values: values * np.nan, "lora_B")),
    "overflow": Recipe(modules=ALL_MODULES, bend=each(lambda values: values * 1e30, "lora_B")),
}


def is_finite(answer: Answer) -> bool:
    return all(math.isfinite(logprob) for logprob in answer[1])


@pytest.fixture(scope="module")
def answers(
    random_base: Path, random_engine: BatchEngine, tmp_path_factory: pytest.TempPathFactory
) -> list[list[Answer]]:
    """Base and a good adapter before, between and after two poisonous ones, on one engine."""
    base = BaseSpec.from_directory(random_base, max_rank=16)
    directory = tmp_path_factory.mktemp("adapters")
    good = Recipe(modules=ALL_MODULES).make(directory / "good", base)
    rng = random.Random(3)

    def prompt(length: int) -> list[int]:
        return [rng.randrange(320) for _ in range(length)]

    honest: Batch = [(prompt(n), model) for n in (5, 60, 140, 200) for model in (None, good)]
    batches = [honest]
    for name, recipe in POISONS.items():
        poison = recipe.make(directory / name, base)
        # Whole blocks of it, and more of them than there are, so that every block has held some.
        batches += [[(prompt(380), poison) for _ in range(NUM_KV_BLOCKS)], honest]
    return random_engine.answer(batches)


def test_the_poison_is_poison(answers: list[list[Answer]]) -> None:
    for batch in answers[1::2]:
        assert not any(map(is_finite, batch))


def test_base_and_adapters_answer_as_before(answers: list[list[Answer]]) -> None:
    """Without clearing, blocks that held NaN spoil whatever comes to lie in them."""
    before, *later = answers[::2]
    assert all(map(is_finite, before))
    for after in later:
        assert after == before
