"""A base rounded to NF4, beside what bitsandbytes trains over."""

import json
from pathlib import Path

import torch

from training.models.base_model import load_model
from training.quantization.nf4 import round_checkpoint_to_nf4, round_to_nf4


def test_a_rounded_base_is_the_one_that_qlora_trains_over(tiny_llama: Path, tmp_path: Path) -> None:
    round_checkpoint_to_nf4(tiny_llama, tmp_path / "nf4")
    config = json.loads((tmp_path / "nf4" / "config.json").read_text())
    assert config.pop("quantized_from") == "tiny-llama"
    assert config.pop("rounded_to") == "nf4"
    assert config == json.loads((tiny_llama / "config.json").read_text())
    from bitsandbytes.functional import dequantize_4bit

    trained_over = load_model(tiny_llama, nf4=True)
    rounded, original = load_model(tmp_path / "nf4"), load_model(tiny_llama)
    num_rounded = 0
    for name, module in trained_over.named_modules():
        if type(module).__name__ == "Linear4bit":
            weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
            assert torch.equal(weight, rounded.get_submodule(name).weight), name
            assert not torch.equal(weight, original.get_submodule(name).weight), name
            num_rounded += 1
    assert num_rounded == 14
    assert torch.equal(rounded.model.embed_tokens.weight, original.model.embed_tokens.weight)


def test_rounding_what_is_rounded_changes_nothing_much() -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    once = round_to_nf4(weight)
    assert once.dtype == weight.dtype
    assert 0.01 < (once - weight).norm() / weight.norm() < 0.15
    again = round_to_nf4(once)
    assert (again - once).norm() < (once - weight).norm() / 4
