"""What the gate accepts, vLLM's own reading of the configuration accepts too, alike."""

from typing import Any

import pytest
from vllm.config.lora import LoRAConfig
from vllm.lora.peft_helper import PEFTHelper

from adapters_registry.base import BaseSpec
from adapters_registry.check import _rank_of, check_adapter
from tests.tiny import AdapterFactory


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"target_modules": "all-linear", "bias": "none"},
        {"init_lora_weights": "gaussian"},
        {"modules_to_save": [], "alpha_pattern": {}, "layer_replication": None},
        {"rank_pattern": {"layers.0.self_attn.k_proj": 4, "gate_proj": 1}},
    ],
)
def test_agree(make_adapter: AdapterFactory, tiny_base: BaseSpec, config: dict[str, Any]) -> None:
    directory = make_adapter(config=config)
    check_adapter(directory, tiny_base)
    helper = PEFTHelper.from_local_dir(str(directory), max_position_embeddings=None)
    helper.validate_legal(LoRAConfig(max_lora_rank=8))
    for module in tiny_base.modules:
        rank, _ = helper.get_rank_and_scaling(module)
        assert rank == _rank_of(module, {"r": 2, **config})
