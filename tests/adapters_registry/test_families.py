"""Which models can be a base, and what the gate says of adapters for layers in other pieces."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters_registry.check.base import BaseSpec
from adapters_registry.check.static_check import check_adapter
from adapters_registry.errors import AdapterRejected
from adapters_registry.families import FAMILIES, FUSED_TARGETS, TARGETS, family_of
from tests.adapter_recipe import Recipe, renamed
from tests.tiny import TINY_BASE


def base_of(architecture: str, **config: Any) -> BaseSpec:
    return BaseSpec.from_config("b", {**TINY_BASE, "architectures": [architecture], **config}, 8)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"architectures": ["Qwen3MoeForCausalLM"]}, "it is a mixture of experts"),
        ({"architectures": ["MixtralForCausalLM"]}, "it is a mixture of experts"),
        (
            {"architectures": ["NewForCausalLM"], "num_local_experts": 8},
            "it is a mixture of experts",
        ),
        (
            {"architectures": ["Gemma3ForConditionalGeneration"]},
            "it isn't a model for text alone",
        ),
        ({"architectures": ["GPT2LMHeadModel"]}, ""),
        ({"architectures": None}, ""),
        ({}, ""),
    ],
)
def test_other_models_are_refused_with_the_list_of_families(
    config: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match="MyModel can't be a base") as error:
        family_of(config, "MyModel")
    message = str(error.value)
    assert message.startswith(f"MyModel can't be a base{': ' if reason else ''}{reason} (")
    assert all(f"{family.name} ({family.architecture})" in message for family in FAMILIES)


def test_an_adapter_of_fused_layers_passes_on_a_base_that_has_them(tmp_path: Path) -> None:
    base = base_of("Phi3ForCausalLM")
    facts = check_adapter(Recipe(modules=FUSED_TARGETS).make(tmp_path / "fused", base), base)
    assert facts.target_modules == sorted(FUSED_TARGETS)


def test_shapes_of_fused_layers_are_checked(tmp_path: Path) -> None:
    base = base_of("Phi3ForCausalLM", num_key_value_heads=4)
    adapter = Recipe(modules=("qkv_proj",)).make(tmp_path / "fused", base)
    with pytest.raises(AdapterRejected) as rejection:
        check_adapter(adapter, base_of("Phi3ForCausalLM"))
    (reason,) = rejection.value.reasons
    assert (reason.code, reason.count) == ("bad_shape", 2)
    assert "not the shape of this base's layers" in reason.message


def as_named(old: str, new: str) -> Callable[[str], str]:
    return lambda key: re.sub(rf"\b{old}\b", new, key)


@pytest.mark.parametrize(
    ("architecture", "layer", "named", "remedy"),
    [
        (
            "Qwen3ForCausalLM",
            "q_proj",
            "qkv_proj",
            "which this base has as q_proj and k_proj and v_proj: "
            "give each of these A and its own rows of B",
        ),
        (
            "Phi3ForCausalLM",
            "gate_up_proj",
            "up_proj",
            "which this base has as gate_up_proj: train on this base, whose layers are fused",
        ),
    ],
)
def test_an_adapter_of_layers_in_other_pieces_is_refused_with_the_remedy(
    tmp_path: Path, architecture: str, layer: str, named: str, remedy: str
) -> None:
    base = base_of(architecture)
    recipe = Recipe(modules=(layer,), bend=renamed(as_named(layer, named)))
    with pytest.raises(AdapterRejected) as rejection:
        check_adapter(recipe.make(tmp_path / "adapter", base), base)
    (reason,) = rejection.value.reasons
    assert reason.message == f"all 4 keys have {named!r} in them, {remedy}"


def test_targets_in_the_names_of_a_fused_base() -> None:
    phi = family_of({"architectures": ["Phi3ForCausalLM"]})
    assert phi.own_names(TARGETS) == FUSED_TARGETS
    assert phi.own_names(("up_proj", "down_proj")) == ("up_proj", "down_proj"), "not as a whole"
    assert phi.own_names(("qkv_proj",)) == ("qkv_proj",)
    qwen = family_of({"architectures": ["Qwen3ForCausalLM"]})
    assert qwen.own_names(TARGETS) == TARGETS
