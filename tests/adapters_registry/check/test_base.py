from typing import Any

import pytest

from adapters_registry.check.base import BaseSpec, split_quantization
from adapters_registry.families import ModuleShape
from tests.llama import LLAMA31_8B, LLAMA31_70B, LLAMA32_1B
from tests.tiny import TINY_BASE


def test_adapters_of_the_base_that_a_quantised_one_was_made_from_are_its_own() -> None:
    config = TINY_BASE | {"quantized_from": "Tiny"}
    base = BaseSpec.from_config("Tiny-W4A16", config, max_rank=8)
    assert base.is_named("org/tiny")
    assert base.is_named("Tiny-W4A16")
    assert not base.is_named("Other")
    assert not base.is_named("")


def test_modules_of_grouped_query_attention(tiny_base: BaseSpec) -> None:
    assert tiny_base.modules["model.layers.1.self_attn.q_proj"] == ModuleShape(16, 16)
    assert tiny_base.modules["model.layers.1.self_attn.k_proj"] == ModuleShape(16, 8)
    assert tiny_base.modules["model.layers.0.mlp.down_proj"] == ModuleShape(32, 16)
    assert len(tiny_base.modules) == 2 * 7


def test_head_dim_may_differ_from_hidden_over_heads() -> None:
    spec = BaseSpec.from_config("wide", {**TINY_BASE, "head_dim": 8}, max_rank=8)
    assert spec.modules["model.layers.0.self_attn.q_proj"] == ModuleShape(16, 32)
    assert spec.modules["model.layers.0.self_attn.o_proj"] == ModuleShape(32, 16)


def test_other_architectures_are_refused() -> None:
    with pytest.raises(ValueError, match="can't be a base"):
        BaseSpec.from_config("gpt", {**TINY_BASE, "architectures": ["GPT2LMHeadModel"]}, 8)


@pytest.mark.parametrize(
    ("config", "num_parameters", "kv"),
    [
        (LLAMA31_8B, 8_030_261_248, ModuleShape(4096, 1024)),
        (LLAMA31_70B, 70_553_706_496, ModuleShape(8192, 1024)),
        (LLAMA32_1B, 1_235_814_400, ModuleShape(2048, 512)),
    ],
)
def test_llamas_modules_hold_what_its_parameter_count_says(
    config: dict[str, Any], num_parameters: int, kv: ModuleShape
) -> None:
    """All parameters but embedding, head and norms are in the modules that adapters may touch."""
    modules = BaseSpec.from_config("llama", config, max_rank=16).modules
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    embeddings = (1 if config["tie_word_embeddings"] else 2) * config["vocab_size"] * hidden
    norms = (2 * layers + 1) * hidden
    linear = sum(shape.in_features * shape.out_features for shape in modules.values())
    assert linear == num_parameters - embeddings - norms
    assert modules[f"model.layers.{layers - 1}.self_attn.v_proj"] == kv
    assert len(modules) == 7 * layers


@pytest.mark.parametrize(
    ("name", "model", "quantization"),
    [
        ("unsloth/SmolLM2-135M-Instruct-bnb-4bit", "smollm2-135m-instruct", "nf4"),
        ("unsloth/Llama-3.1-8B-unsloth-bnb-4bit", "llama-3.1-8b", "nf4"),
        ("me/Base-NF4", "base", "nf4"),
        ("hugging-quants/Llama-3.1-8B-AWQ", "llama-3.1-8b", "awq"),
        ("org/Base-GPTQ", "base", "gptq"),
        ("org/Base-fp8", "base", "fp8"),
        ("LLM-Research/Meta-Llama-3___1-8B", "meta-llama-3.1-8b", None),
        ("org/nf4-tuned", "nf4-tuned", None),
        ("-nf4", "-nf4", None),
        ("", "", None),
    ],
)
def test_names_of_quantised_copies(name: str, model: str, quantization: str | None) -> None:
    assert split_quantization(name) == (model, quantization)


def test_a_quantised_copy_of_the_base_is_the_base() -> None:
    base = BaseSpec.from_config("Tiny-3.1", TINY_BASE, max_rank=8)
    assert base.is_named("unsloth/tiny-3.1-bnb-4bit")
    assert base.is_named("x/Tiny-3___1")
    assert not base.is_named("x/Other-bnb-4bit")
    assert not base.is_named("-bnb-4bit")
