"""The base as a run loads it."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from training.errors import TrainingError
from training.models.base_model import base_digest, load_model, load_tokenizer, own_chat_template


def test_nf4_stays_as_it_is_when_evaluated(tiny_llama: Path) -> None:
    model = load_model(tiny_llama, nf4=True).eval()
    module = model.model.layers[0].mlp.up_proj
    before = module.weight.data.clone()
    with torch.inference_mode():
        model(torch.tensor([[1, 2, 3]]))
    assert torch.equal(module.weight.data, before)


def test_a_chat_template_takes_the_place_of_the_bases(tiny_llama: Path, tmp_path: Path) -> None:
    assert "<|im_start|>" in load_tokenizer(tiny_llama).chat_template
    assert load_tokenizer(tiny_llama, "{{ messages }}").chat_template == "{{ messages }}"
    assert own_chat_template(tmp_path) == ""
    (tmp_path / "chat_template.jinja").write_text("x")
    assert own_chat_template(tmp_path) == "x"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(TrainingError, match="can't read the chat template"):
        own_chat_template(tmp_path)


def test_a_base_without_a_template_is_refused_with_a_way_out(
    tiny_llama: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    with pytest.raises(TrainingError, match=r"no chat template: .* --chat-template FILE"):
        load_tokenizer(base)
    assert load_tokenizer(base, "x").chat_template == "x"


def test_a_base_is_named_by_its_weights(tiny_llama: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    assert base_digest(base) == base_digest(tiny_llama)
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    assert base_digest(base) != base_digest(tiny_llama)


def test_a_chat_template_in_the_tokenizers_configuration(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    assert own_chat_template(tmp_path) == "x"
