"""A refusal has one line for each cause: how often it holds, and what mends it."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from adapters_registry.check.base import BaseSpec
from adapters_registry.check.static_check import check_adapter
from adapters_registry.errors import AdapterRejected, Reason
from tests.adapter_recipe import ALL_MODULES, Recipe, each, renamed

NUM_MODULES = 14
"""Of both layers of the tiny base."""


def reasons(tmp_path: Path, base: BaseSpec, recipe: Recipe) -> list[Reason]:
    with pytest.raises(AdapterRejected) as rejection:
        check_adapter(recipe.make(tmp_path / "adapter", base), base)
    return rejection.value.reasons


def test_a_rank_over_the_limit_is_one_cause(tmp_path: Path, tiny_base: BaseSpec) -> None:
    recipe = Recipe(rank=64, config={"lora_alpha": 64}, modules=ALL_MODULES)
    (reason,) = reasons(tmp_path, tiny_base, recipe)
    more = (tiny_base.adapter_bytes(64) - tiny_base.adapter_bytes(8)) / (1 << 20)
    assert reason.message == (
        f"rank 64 is over this server's limit of 8 ({NUM_MODULES} modules): with fit_rank "
        "(--fit-rank) its best fit of rank 8 is served; or an operator can "
        f"restart it with --max-lora-rank 64, which takes {more:.1f} MiB more for each slot"
    )
    assert (reason.code, reason.count) == ("rank_too_large", NUM_MODULES)
    assert len(reason.keys) == 5
    assert reason.key == reason.keys[0]


def test_a_rank_between_the_engines_limits_names_the_next(
    tmp_path: Path, tiny_base: BaseSpec
) -> None:
    (reason,) = reasons(tmp_path, tiny_base, Recipe(rank=33))
    assert "--max-lora-rank 64" in reason.message


def test_a_rank_over_every_limit_of_the_engine(tmp_path: Path, tiny_base: BaseSpec) -> None:
    (reason,) = reasons(tmp_path, tiny_base, Recipe(rank=513))
    assert "the engine takes 512 at most" in reason.message


def replace(old: str, new: str) -> Callable[[str], str]:
    return lambda key: key.replace(old, new)


WRAPPED = {
    "a": (replace("model.layers", "model.language_model.layers"), "language_model."),
    "b": (replace("_model.model.model.", "_model.model.language_model.model."), "language_model."),
    "c": (replace(".weight", ".default.weight"), ".default"),
    "d": (replace("base_model.model.", "base_model.model._orig_mod."), "_orig_mod."),
    "e": (replace("base_model.model.", "base_model.model." * 2), "base_model.model."),
    "distributed": (replace("base_model.model.", "base_model.model.module."), "module."),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_names_that_a_wrapper_left(tmp_path: Path, tiny_base: BaseSpec, case: str) -> None:
    change, mark = WRAPPED[case]
    (reason,) = reasons(tmp_path, tiny_base, Recipe(bend=renamed(change), modules=ALL_MODULES))
    start = f"all {2 * NUM_MODULES} keys have {mark!r} in them, "
    assert reason.message.startswith(start)
    remedy = "remove one of the two from the names" if case == "e" else "remove it from the names"
    assert reason.message.endswith(remedy)
    assert (reason.code, reason.count) == ("unknown_key", 2 * NUM_MODULES)


def test_names_with_two_causes_have_a_line_each(tmp_path: Path, tiny_base: BaseSpec) -> None:
    def change(key: str) -> str:
        return re.sub(r"model\.model\.layers\.1", "model._orig_mod.model.layers.1", key).replace(
            "layers.0.mlp", "layers.0.moe"
        )

    found = reasons(tmp_path, tiny_base, Recipe(bend=renamed(change)))
    unknown, compiled = sorted(found, key=lambda reason: reason.count)
    assert (unknown.count, compiled.count) == (2, 4)
    assert unknown.message.startswith("2 of 8 keys are no LoRA weights of linear layers of tiny")
    assert compiled.message.startswith("4 of 8 keys have '_orig_mod.' in them, as torch.compile")


def test_a_foreign_prefix_is_named_beside_the_right_one(
    tmp_path: Path, tiny_base: BaseSpec
) -> None:
    recipe = Recipe(bend=renamed(replace("base_model.model.model.", "transformer.")))
    (reason,) = reasons(tmp_path, tiny_base, recipe)
    assert "'transformer.' before 'layers.'" in reason.message
    assert "'base_model.model.model.'" in reason.message


def test_empty_tensors_are_what_zero_3_saves(tmp_path: Path, tiny_base: BaseSpec) -> None:
    recipe = Recipe(bend=each(lambda v: np.zeros(0, v.dtype)), modules=ALL_MODULES)
    (reason,) = reasons(tmp_path, tiny_base, recipe)
    assert reason.message.startswith(f"the tensors are empty ({NUM_MODULES} modules, such as ")
    assert "DeepSpeed ZeRO-3" in reason.message
    assert "save again with gathered weights" in reason.message


def test_another_claimed_rank_is_one_cause_whatever_the_shapes(
    tmp_path: Path, tiny_base: BaseSpec
) -> None:
    recipe = Recipe(config={"r": 4}, modules=ALL_MODULES)
    (reason,) = reasons(tmp_path, tiny_base, recipe)
    assert (reason.code, reason.count) == ("bad_shape", NUM_MODULES)
    assert "correct r or rank_pattern in adapter_config.json" in reason.message


def test_values_are_one_cause(tmp_path: Path, tiny_base: BaseSpec) -> None:
    recipe = Recipe(bend=each(lambda v: v * np.nan), modules=ALL_MODULES)
    (reason,) = reasons(tmp_path, tiny_base, recipe)
    assert (reason.code, reason.count) == ("not_finite", NUM_MODULES)


def test_unknown_switches_are_one_cause(tmp_path: Path, tiny_base: BaseSpec) -> None:
    recipe = Recipe(config={f"use_{number}": True for number in range(30)})
    (reason,) = reasons(tmp_path, tiny_base, recipe)
    assert reason.message.startswith("30 keys, such as use_0, are unknown here")
    assert reason.count == 30
