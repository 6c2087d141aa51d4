import json
from pathlib import Path

import pytest

from server.engine.device.base_size import BaseSize, size_of
from tests.llama import LLAMA31_8B

PARAMETERS_8B = 8_030_261_248


def test_a_configuration_gives_the_published_sizes() -> None:
    size = BaseSize.from_config(LLAMA31_8B)
    assert size.weights_bytes == pytest.approx(2 * PARAMETERS_8B, rel=1e-3)
    assert size.slot_bytes_per_rank * 16 == 83_886_080, "an adapter of rank 16: 83.9 MB"
    assert size.kv_bytes_per_token == 131_072
    assert size.max_tokens == 131_072
    four_bit = LLAMA31_8B | {"quantization_config": {"quant_method": "awq"}}
    assert 5.4e9 < BaseSize.from_config(four_bit).weights_bytes < 6.2e9


def test_a_directory_tells_the_size_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA31_8B))
    estimate = size_of(tmp_path)
    assert estimate is not None
    assert estimate.weights_bytes > 0
    (tmp_path / "model-1.safetensors").write_bytes(bytes(1000))
    (tmp_path / "model-2.safetensors").write_bytes(bytes(500))
    found = size_of(tmp_path)
    assert found is not None
    assert found.weights_bytes == 1500
    assert found.slot_bytes_per_rank == estimate.slot_bytes_per_rank
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-3.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert size_of(tmp_path) == estimate, "a part is yet to be downloaded"


@pytest.mark.parametrize("config", ["{", "[]", '{"architectures": ["LlamaForCausalLM"]}', "{}"])
def test_what_is_not_a_llama_has_no_known_size(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    assert size_of(tmp_path) is None
