"""What changes a base's fingerprint, and what doesn't."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adapters_registry.check.fingerprint import fingerprint_of

NAMES = ("model.layers.0.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A directory as a base has it; one tensor is longer than what is sampled of it."""
    directory = tmp_path / "base"
    directory.mkdir()
    random = np.random.default_rng(0)
    shapes = ((300, 400), (40,), (20, 30))
    tensors = {
        name: random.standard_normal(shape, dtype=np.float32)
        for name, shape in zip(NAMES, shapes, strict=True)
    }
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"hidden_size": 40}))
    (directory / "tokenizer.json").write_text("{}")
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    return directory


def test_a_copy_elsewhere_is_the_same_base(base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "renamed"
    copytree(base, copy)
    assert fingerprint_of(copy) == fingerprint_of(base)


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_counts(base: Path, name: str) -> None:
    """The configuration and all sizes stay; another training changes nearly all values."""
    before = fingerprint_of(base)
    tensors = load_file(base / "model.safetensors")
    tensors[name] *= np.float32(1.01)
    save_file(tensors, base / "model.safetensors")
    assert fingerprint_of(base) != before


def test_the_layout_of_the_files_does_not_count(base: Path) -> None:
    before = fingerprint_of(base)
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    save_file({NAMES[0]: tensors[NAMES[0]]}, base / "a.safetensors")
    save_file({name: tensors[name] for name in NAMES[1:]}, base / "b.safetensors")
    files = {name: "a.safetensors" if name == NAMES[0] else "b.safetensors" for name in NAMES}
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    assert fingerprint_of(base) == before


def test_who_wrote_the_configuration_does_not_count(base: Path) -> None:
    before = fingerprint_of(base)
    writer = {"_name_or_path": "/elsewhere", "transformers_version": "9", "hidden_size": 40}
    (base / "config.json").write_text(json.dumps(writer, indent=2))
    assert fingerprint_of(base) == before


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.json", '{"hidden_size": 40, "rope_theta": 1}'),
        ("config.json", '{"hidden_size": 40, "quantization_config": {"quant_method": "awq"}}'),
        ("tokenizer.json", '{"added_tokens": []}'),
        ("chat_template.jinja", "{{ messages[0] }}"),
        ("tokenizer_config.json", '{"chat_template": "x"}'),
    ],
)
def test_configuration_tokenizer_and_template_count(base: Path, file: str, text: str) -> None:
    before = fingerprint_of(base)
    (base / file).write_text(text)
    assert fingerprint_of(base) != before


def test_rounding_at_load_time_counts(base: Path) -> None:
    assert fingerprint_of(base, "fp8") != fingerprint_of(base)


def test_weights_without_safetensors_count(base: Path) -> None:
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(bytes(1 << 20))
    before = fingerprint_of(base)
    (base / "pytorch_model.bin").write_bytes(b"\1" * (1 << 20))
    assert fingerprint_of(base) != before
