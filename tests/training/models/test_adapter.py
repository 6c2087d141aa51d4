"""An adapter's updates, read without a model."""

from pathlib import Path

import pytest
import torch

from tests.training.adapters import make_adapter
from training.errors import TrainingError
from training.models.adapter import Update, read_config, read_updates, size_of
from training.models.base_model import load_model


def test_an_update_is_scale_times_b_times_a(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_llama, tmp_path / "adapter")
    updates = read_updates(adapter, tiny_llama)
    assert len(updates) == 4, "two modules in each of two layers"
    assert read_config(adapter)["r"] == 4
    name, update = "model.layers.0.self_attn.q_proj", updates["model.layers.0.self_attn.q_proj"]
    assert update.scale == 2
    weight = load_model(tiny_llama).get_submodule(name).weight
    assert update.delta.shape == weight.shape
    inputs = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(0))
    assert torch.allclose(update(inputs), inputs @ update.delta.T, atol=1e-4)


def test_the_size_of_a_sum_is_that_of_the_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    updates = [
        Update(torch.randn(2, 8, generator=generator), torch.randn(6, 2, generator=generator), s)
        for s in (0.5, -2.0)
    ]
    whole = updates[0].delta + updates[1].delta
    assert size_of(updates) == pytest.approx(float(whole.norm()), rel=1e-4)


def test_what_is_not_an_adapter(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"it has no adapter_config\.json"):
        read_updates(tmp_path, tiny_llama)
