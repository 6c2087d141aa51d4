"""The gate refuses each malformed adapter for its own reason, and takes every valid variant."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adapters_registry.check.base import BaseSpec
from adapters_registry.check.norms import UNKNOWN_RMS, WeightNorms
from adapters_registry.check.static_check import check_adapter
from adapters_registry.content.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from adapters_registry.errors import AdapterRejected, Reason
from tests.adapter_recipe import B, Recipe, each, without
from tests.corpus import MALFORMED, valid
from tests.llama import LLAMA31_8B, LLAMA31_70B, LLAMA32_1B
from tests.tiny import AdapterFactory


def reasons(directory: Path, base: BaseSpec) -> list[Reason]:
    with pytest.raises(AdapterRejected) as rejection:
        check_adapter(directory, base)
    return rejection.value.reasons


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(tmp_path: Path, tiny_base: BaseSpec, name: str) -> None:
    recipe = MALFORMED[name]
    found = reasons(recipe.make(tmp_path / "adapter", tiny_base), tiny_base)
    assert {reason.code for reason in found} <= {recipe.code, *ALSO.get(name, ())}
    assert recipe.code in {reason.code for reason in found}
    assert all(reason.message for reason in found)
    assert recipe.code == "no_effect" or all(reason.key for reason in found)


ALSO = {
    "tensors' rank over the limit": {"bad_shape"},
    "claimed rank over the limit": {"bad_shape"},
    "keys without the causal model": {"unpaired"},
    "A and B exchanged": {"rank_too_large"},
}
"""What is also true of them."""


def test_the_corpus_is_large_and_small() -> None:
    assert len(MALFORMED) >= 40
    assert len({recipe.code for recipe in MALFORMED.values()}) >= 15


def test_valid(tmp_path: Path, tiny_base: BaseSpec) -> None:
    for name, recipe in valid(tiny_base).items():
        directory = recipe.make(tmp_path / name, tiny_base)
        assert check_adapter(directory, tiny_base).rank >= recipe.rank


def test_facts(tmp_path: Path, tiny_base: BaseSpec) -> None:
    recipe = Recipe(config={"base_model_name_or_path": "org/Tiny"})
    facts = check_adapter(recipe.make(tmp_path / "adapter", tiny_base), tiny_base)
    assert (facts.rank, facts.num_layers, facts.base_model) == (2, 2, "org/Tiny")
    assert facts.target_modules == ["down_proj", "q_proj"]


def test_another_base_may_be_allowed(tmp_path: Path, tiny_base: BaseSpec) -> None:
    directory = MALFORMED["another base"].make(tmp_path / "adapter", tiny_base)
    (reason,) = reasons(directory, tiny_base)
    assert "--allow-base-mismatch" in reason.message
    assert check_adapter(directory, tiny_base, allow_base_mismatch=True).rank == 2


@pytest.mark.parametrize("config", [LLAMA31_8B, LLAMA31_70B, LLAMA32_1B])
def test_each_llamas_adapter_fits_it_alone(config: dict[str, Any], tmp_path: Path) -> None:
    base = BaseSpec.from_config("llama", config, max_rank=8)
    first_layer = {n: s for n, s in base.modules.items() if n.startswith("model.layers.0.")}
    weights = {}
    for name, shape in first_layer.items():
        weights[f"base_model.model.{name}.lora_A.weight"] = np.ones((1, shape.in_features), "f4")
        weights[f"base_model.model.{name}.lora_B.weight"] = np.ones((shape.out_features, 1), "f4")
    save_file(weights, tmp_path / WEIGHTS_FILE)
    values = {"peft_type": "LORA", "r": 1, "lora_alpha": 0.01, "target_modules": "all-linear"}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(values))
    assert len(check_adapter(tmp_path, base).target_modules) == 7
    for other in (LLAMA31_8B, LLAMA31_70B, LLAMA32_1B):
        if other is not config:
            found = reasons(tmp_path, BaseSpec.from_config("other", other, 8))
            assert {reason.code for reason in found} == {"bad_shape"}


def test_all_reasons_at_once(tmp_path: Path, tiny_base: BaseSpec) -> None:
    config = {"use_dora": True, "bias": "all", "base_model_name_or_path": "other"}
    recipe = Recipe(config=config, bend=without(B))
    found = reasons(recipe.make(tmp_path / "adapter", tiny_base), tiny_base)
    assert [reason.code for reason in found] == [
        "unsupported_feature",
        "unsupported_feature",
        "base_mismatch",
        "unpaired",
    ]


def test_reasons_are_bounded_and_can_be_sent(
    make_adapter: AdapterFactory, tiny_base: BaseSpec
) -> None:
    many = {f"\ud800{number}" + "x" * 999: True for number in range(500)}
    directory = make_adapter(config={**many, "base_model_name_or_path": "\ud800"})
    sent = json.dumps([r.__dict__ for r in reasons(directory, tiny_base)], ensure_ascii=False)
    assert len(sent.encode()) < 200_000
    directory = make_adapter(config={"base_model_name_or_path": "\ud800/tiny"})
    assert check_adapter(directory, tiny_base).base_model == "?/tiny"


def test_changes_are_measured_against_the_bases_own_weights(
    tmp_path: Path, tiny_base: BaseSpec
) -> None:
    """The same adapter is small beside large weights, and too large beside small ones."""
    rng = np.random.default_rng(0)
    adapter = Recipe(bend=each(lambda values: values * 10, B)).make(tmp_path / "a", tiny_base)
    for size, passes in ((1.0, True), (0.01, False)):
        weights = {
            f"{name}.weight": rng.normal(0, size, (shape.out_features, shape.in_features))
            for name, shape in tiny_base.modules.items()
        }
        directory = tmp_path / f"base{size}"
        directory.mkdir()
        half = {key: values.astype(np.float16) for key, values in weights.items()}
        save_file(half, directory / "one.safetensors")
        index = {"weight_map": dict.fromkeys(half, "one.safetensors")}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
        norms = WeightNorms(directory)
        for key, values in weights.items():
            norm = norms.of(key.removesuffix(".weight"), values.size)
            assert norm == pytest.approx(np.linalg.norm(values), rel=0.01)
        base = BaseSpec(tiny_base.name, tiny_base.modules, tiny_base.max_rank, norms)
        if passes:
            assert check_adapter(adapter, base).rank == 2
        else:
            assert {reason.code for reason in reasons(adapter, base)} == {"too_large"}


def test_norms_of_weights_that_are_not_there(tmp_path: Path) -> None:
    norms = WeightNorms(tmp_path)
    assert norms.of("model.layers.0.mlp.up_proj", 16) == UNKNOWN_RMS * 4
    save_file({"x.weight": np.ones((2, 2), np.float32)}, tmp_path / "model.safetensors")
    assert norms.of("x", 4) == 2, "weights that came later were not seen"


def test_a_weights_file_that_goes_away_is_a_reason(tmp_path: Path, tiny_base: BaseSpec) -> None:
    directory = Recipe().make(tmp_path / "adapter", tiny_base)
    (directory / WEIGHTS_FILE).unlink()
    assert {reason.code for reason in reasons(directory, tiny_base)} == {"weights_unreadable"}


def trained_quantization(quantization: str) -> Recipe:
    def mark(directory: Path) -> None:
        file = directory / WEIGHTS_FILE
        save_file(load_file(file), file, metadata={"trained_over": quantization})

    return Recipe(after=mark)


def test_what_the_base_was_rounded_to_in_training(tmp_path: Path, tiny_base: BaseSpec) -> None:
    nf4_base = replace(tiny_base, quantization="nf4")
    marked = trained_quantization("nf4").make(tmp_path / "nf4", tiny_base)
    plain = trained_quantization("").make(tmp_path / "plain", tiny_base)
    silent = Recipe().make(tmp_path / "silent", tiny_base)
    assert check_adapter(marked, nf4_base).warnings == []
    assert check_adapter(plain, tiny_base).warnings == []
    for base in (tiny_base, nf4_base):
        facts = check_adapter(silent, base)
        assert (facts.trained_quantization, facts.warnings) == (None, [])
    (warning,) = check_adapter(marked, tiny_base).warnings
    assert "trained over weights rounded to nf4" in warning
    assert "base has unrounded weights" in warning
    (warning,) = check_adapter(plain, nf4_base).warnings
    assert "trained over unrounded weights" in warning
    strict = replace(tiny_base, refuses_quantization_mismatch=True)
    assert [reason.code for reason in reasons(marked, strict)] == ["rounding_mismatch"]
    assert check_adapter(marked, strict, allow_base_mismatch=True).warnings
    assert check_adapter(plain, strict).warnings == []


def named(model: str, quantization: str | None = None) -> Recipe:
    def rename(directory: Path) -> None:
        file = directory / CONFIG_FILE
        file.write_text(
            json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": model})
        )
        if quantization is not None:
            weights = directory / WEIGHTS_FILE
            save_file(load_file(weights), weights, metadata={"trained_over": quantization})

    return Recipe(after=rename)


def test_a_quantised_base_by_its_name(tmp_path: Path, tiny_base: BaseSpec) -> None:
    adapter = named("unsloth/tiny-bnb-4bit").make(tmp_path / "a", tiny_base)
    for is_allowed in (False, True):
        facts = check_adapter(adapter, tiny_base, allow_base_mismatch=is_allowed)
        assert facts.trained_quantization == "nf4"
        assert "trained over weights rounded to nf4" in facts.warnings[0]
    strict = replace(tiny_base, refuses_quantization_mismatch=True)
    assert [reason.code for reason in reasons(adapter, strict)] == ["rounding_mismatch"]
    assert check_adapter(adapter, strict, allow_base_mismatch=True).warnings
    for quantization in ("nf4", "bitsandbytes"):
        assert check_adapter(adapter, replace(tiny_base, quantization=quantization)).warnings == []


def test_what_training_wrote_wins_over_the_name(tmp_path: Path, tiny_base: BaseSpec) -> None:
    adapter = named("unsloth/tiny-bnb-4bit", "").make(tmp_path / "a", tiny_base)
    facts = check_adapter(adapter, tiny_base)
    assert (facts.trained_quantization, facts.warnings) == ("", [])


def test_a_base_says_what_it_was_rounded_to() -> None:
    assert BaseSpec.from_config("b", LLAMA32_1B, 8).quantization == ""
    nf4 = LLAMA32_1B | {"rounded_to": "nf4"}
    assert BaseSpec.from_config("b", nf4, 8).quantization == "nf4"
    packed = LLAMA32_1B | {"quantization_config": {"quant_method": "compressed-tensors"}}
    assert BaseSpec.from_config("b", packed, 8).quantization == "compressed-tensors"
