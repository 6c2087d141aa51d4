import pytest

from adapters_registry.base import BaseSpec, ModuleShape
from tests.tiny import TINY_BASE


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
    with pytest.raises(ValueError, match="no Llama base"):
        BaseSpec.from_config("gpt", {**TINY_BASE, "architectures": ["GPT2LMHeadModel"]}, 8)
