"""The formulas of memory, beside the tensors of real models."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.llama import LLAMA31_8B, LLAMA31_70B, LLAMA32_1B
from tests.tiny_llama import make_tiny_llama
from training.data.recipe import Recipe, make_recipe
from training.errors import TrainingError
from training.models.base_model import load_model
from training.models.lora import add_lora
from training.plan.memory import Shape, activation_bytes, training_memory
from training.run.trainer import answer_loss


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a real vocabulary, whose logits are the larger part of what is kept."""
    return make_tiny_llama(tmp_path_factory.mktemp("base") / "tiny-llama")


def shape_of(base: Path) -> Shape:
    return Shape.of(json.loads((base / "config.json").read_text()))


def load(base: Path, recipe: Recipe) -> Any:
    if recipe.method == "full":
        return load_model(base, torch.float32)
    return add_lora(load_model(base, nf4=recipe.method == "qlora"), recipe)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rank": 4, "targets": ["q_proj", "v_proj", "down_proj"], "num_last_layers": 1},
        {"method": "qlora"},
        {"method": "full"},
    ],
)
def test_state_is_the_tensors_of_a_real_model(tiny_llama: Path, changes: dict[str, Any]) -> None:
    recipe, shape = make_recipe(changes), shape_of(tiny_llama)
    model = load(tiny_llama, recipe)
    trained = [p for p in model.parameters() if p.requires_grad]
    memory = training_memory(shape, recipe, length=64)
    assert shape.num_trainable(recipe) == sum(p.numel() for p in trained)
    assert memory.gradients == sum(p.nbytes for p in trained)
    assert memory.optimiser == 2 * memory.gradients
    assert memory.weights == sum(p.nbytes for p in model.parameters())
    if recipe.method == "qlora":
        states = [p.quant_state for p in model.parameters() if hasattr(p, "quant_state")]
        scales = sum(s.absmax.nbytes + s.state2.absmax.nbytes for s in states)
        assert memory.quantisation == pytest.approx(scales, rel=0.05)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rank": 4, "targets": ["q_proj", "v_proj"]},
        {"method": "full"},
        {"gradient_checkpointing": True},
    ],
)
def test_activations_are_what_autograd_keeps(tiny_llama: Path, changes: dict[str, Any]) -> None:
    recipe, shape = make_recipe({"batch_size": 4, **changes}), shape_of(tiny_llama)
    model = load(tiny_llama, recipe).train()
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.randint(0, shape.vocabulary, (4, 64))
    labels = ids.masked_fill(torch.arange(64) < 48, -100)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=recipe.method == "full")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        loss, _ = answer_loss(model, batch)
    assert loss.isfinite()
    planned = activation_bytes(shape, recipe, length=64, answer_share=16 / 64, logit_bytes=4)
    if recipe.gradient_checkpointing:  # one layer is computed again only in the backward pass
        one_layer = activation_bytes(shape, replace(recipe, gradient_checkpointing=False), 64, 0, 0)
        planned -= one_layer // shape.num_layers
    assert planned == pytest.approx(sum(kept.values()), rel=0.03)


@pytest.mark.parametrize("config", [LLAMA31_8B, LLAMA31_70B, LLAMA32_1B])
def test_parameters_are_the_models(config: dict[str, Any]) -> None:
    from transformers import LlamaConfig

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**config))
    assert Shape.of(config).num_parameters == sum(p.numel() for p in model.parameters())


def test_no_known_model() -> None:
    with pytest.raises(TrainingError, match="can't be a base"):
        Shape.of({"architectures": ["GPT2LMHeadModel"]})
    with pytest.raises(TrainingError, match="not a model configuration"):
        Shape.of({"architectures": ["LlamaForCausalLM"]})
