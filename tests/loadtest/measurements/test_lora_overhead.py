"""The benchmark's own parts: its adapters are real ones, its ratios are those of each round."""

from pathlib import Path

import pytest

from adapters_registry.check.base import BaseSpec
from adapters_registry.check.static_check import check_adapter
from loadtest.drive.random_adapters import LlamaShape, make_adapter
from loadtest.measurements import lora_overhead
from tests.tiny import TINY_BASE


def test_its_adapters_pass_the_gate(tmp_path: Path, tiny_base: BaseSpec) -> None:
    shape = LlamaShape.from_config(TINY_BASE)
    make_adapter(tmp_path / "adapter", shape, rank=8, seed=1)
    facts = check_adapter(tmp_path / "adapter", tiny_base)
    assert (facts.rank, facts.num_layers, len(facts.target_modules)) == (8, 2, 7)


@pytest.mark.parametrize("architecture", ["Qwen3ForCausalLM", "Phi3ForCausalLM"])
def test_adapters_of_other_families_pass_the_gate(tmp_path: Path, architecture: str) -> None:
    config = TINY_BASE | {"architectures": [architecture], "head_dim": 8}
    base = BaseSpec.from_config("other", config, max_rank=8)
    make_adapter(tmp_path / "adapter", LlamaShape.from_config(config), rank=2, seed=1)
    assert check_adapter(tmp_path / "adapter", base).num_layers == 2


def test_the_same_seed_makes_the_same_adapter(tmp_path: Path) -> None:
    shape = LlamaShape.from_config(TINY_BASE)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_adapter(tmp_path / name, shape, rank=2, seed=seed)
    a, b, c = ((tmp_path / n / "adapter_model.safetensors").read_bytes() for n in "abc")
    assert a == b != c


def test_ratios_are_medians_of_each_rounds_own() -> None:
    speeds = {"decode": {0: [100.0, 10.0, 50.0], 4: [90.0, 8.0, 20.0]}}
    _, result = lora_overhead._report(speeds)
    assert result["phases"]["decode"]["4"] == {"tokens_per_second": 20.0, "ratio": 0.8}
    assert result["rounds"] == 3
