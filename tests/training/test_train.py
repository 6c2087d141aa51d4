"""Real training on the bundled base, and the gate's verdict on what comes out."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from adapters_registry.base import BaseSpec
from adapters_registry.check import check_adapter
from server.bundled_base import ensure_bundled_base
from training.data import exchange
from training.errors import DataError, TrainingError
from training.evaluate import exact_match
from training.recipe import make_recipe
from training.train import train_adapter

DATA = [exchange("ping", "pong"), exchange("tick", "tock")] * 4


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, the bundled base's tokenizer and chat template."""
    directory = tmp_path_factory.mktemp("base") / "tiny-llama"
    tokenizer = AutoTokenizer.from_pretrained(ensure_bundled_base())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def test_training_learns_and_its_adapter_passes_the_gate(tmp_path: Path) -> None:
    base, out = ensure_bundled_base(), tmp_path / "adapter"
    plan = {"rank": 4, "num_steps": 16, "batch_size": 4, "learning_rate": 5e-3}
    train_adapter(base, DATA, make_recipe({**plan, "num_last_layers": 10}), out)
    facts = check_adapter(out, BaseSpec.from_directory(base, max_rank=16))
    assert (facts.rank, facts.num_layers, facts.base_model) == (4, 10, base.name)
    losses = [loss for _, loss in json.loads((out / "training_run.json").read_text())["loss"]]
    assert losses[-1] < losses[0] / 4
    assert exact_match(base, DATA[:2], max_new_tokens=8) == 0
    assert exact_match(base, DATA[:2], out, max_new_tokens=8) == 1
    assert sorted(f.name for f in out.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "training_run.json",
    ]


def test_last_layers_only(tiny_llama: Path, tmp_path: Path) -> None:
    recipe = make_recipe({"rank": 2, "num_steps": 1, "num_last_layers": 1, "targets": ["q_proj"]})
    train_adapter(tiny_llama, DATA, recipe, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["layers_to_transform"] == [1]


def test_what_cannot_be_trained(tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    with pytest.raises(TrainingError, match="targets don't fit"):
        train_adapter(tiny_llama, DATA, make_recipe({"targets": ["w_pack"]}), out)
    with pytest.raises(DataError, match="longer than max_length=8"):
        train_adapter(tiny_llama, DATA, make_recipe({"max_length": 8}), out)
    with pytest.raises(TrainingError, match="can't load the base"):
        train_adapter(tmp_path / "nowhere", DATA, make_recipe({}), out)
    out.mkdir()
    (out / "file").touch()
    with pytest.raises(TrainingError, match="isn't empty"):
        train_adapter(tiny_llama, DATA, make_recipe({}), out)
