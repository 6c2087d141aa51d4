"""What the gate accepts, vLLM's own reading of the configuration accepts too, alike."""

from typing import Any

import pytest
from vllm.config.lora import LoRAConfig
from vllm.lora.peft_helper import PEFTHelper

from adapters_registry.check.base import BaseSpec
from adapters_registry.check.peft_config import PeftConfig
from adapters_registry.check.static_check import check_adapter
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
        {"alpha_pattern": {"layers.1.self_attn.q_proj": 9, "q_proj": 2.5}, "use_rslora": True},
        {"rank_pattern": {r".*\.layers\.1\..*k_proj": 4, "k_proj": 3, "^q_proj": 5}},
        {"rank_pattern": {"k.proj": 4, "(up|gate)_proj": 3, "model.layers.0.self_attn.k_proj": 5}},
        {"alpha_pattern": {"gate|up_proj": 1, r"[01]\.mlp\.\w+": 7}, "use_rslora": True},
        {"rank_pattern": {"up_proj": 4}, "alpha_pattern": {"up_proj": 1, "layers.0": 7}},
    ],
)
def test_agree(make_adapter: AdapterFactory, tiny_base: BaseSpec, config: dict[str, Any]) -> None:
    directory = make_adapter(config=config)
    check_adapter(directory, tiny_base)
    helper = PEFTHelper.from_local_dir(str(directory), max_position_embeddings=None)
    helper.validate_legal(LoRAConfig(max_lora_rank=8))
    for module in tiny_base.modules:
        ours = PeftConfig({"r": 2, "lora_alpha": 4, **config})
        assert helper.get_rank_and_scaling(module) == (ours.rank_of(module), ours.scale_of(module))
