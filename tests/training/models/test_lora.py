"""PEFT's configuration for a recipe, refused where no server could serve the adapter."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adapters_registry.check.weights import trained_quantization
from training.data.recipe import make_recipe
from training.errors import TrainingError
from training.models.base_model import load_model
from training.models.lora import add_lora, lora_config, save_adapter


def test_a_recipe_becomes_pefts_configuration() -> None:
    recipe = make_recipe({"rank": 4, "alpha": 8, "rslora": True, "num_last_layers": 2})
    config = lora_config(recipe, num_layers=6)
    assert (config.r, config.lora_alpha, config.use_rslora) == (4, 8, True)
    assert config.layers_to_transform == [4, 5]
    assert lora_config(make_recipe({}), num_layers=6).layers_to_transform is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 1024}, "over vLLM's limit of 512"),
        ({"peft": {"use_dora": True}}, "DoRA can't be served"),
        ({"peft": {"lora_droput": 0.1}}, "PEFT refuses"),
    ],
)
def test_what_could_not_be_served_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        lora_config(make_recipe(changes), num_layers=2)


def test_an_adapter_is_written_in_bfloat16_with_what_it_was_trained_over(
    tiny_llama: Path, tmp_path: Path
) -> None:
    model = add_lora(load_model(tiny_llama), make_recipe({"rank": 2, "targets": ["q_proj"]}))
    save_adapter(model, tmp_path, tiny_llama, "nf4")
    weights = tmp_path / "adapter_model.safetensors"
    tensors = load_file(weights)
    assert len(tensors) == 4
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert trained_quantization(weights) == "nf4"
    assert not (tmp_path / "README.md").exists()
