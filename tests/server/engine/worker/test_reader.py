"""Adapters of one shape share the work that depends on their files' header alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from server.engine.worker import reader
from server.engine.worker.lora_cpu.files import AdapterFile
from server.engine.worker.reader import AdapterReader, Layers, Plan

NAME = "model.layers.0.self_attn.o_proj"


class Way:
    """Makes of a file its numbers, times the scale. Counts how often it plans."""

    def __init__(self) -> None:
        self.places = {NAME: ("it", 0, 1)}
        self.num_planned = 0

    def plan(self, _file: AdapterFile, layers: Layers) -> Plan:
        self.num_planned += 1
        [projection] = layers["it"]
        assert projection is not None
        matrix, scale = projection.b, projection.scale

        def model(version_id: int, rank: int, file: AdapterFile) -> Any:
            numbers = file.numbers[matrix.offset :].view(np.float32)
            return version_id, rank, float(numbers[0]) * scale

        return model


@pytest.fixture
def way() -> Way:
    return Way()


@pytest.fixture
def read(way: Way) -> Any:
    worker = SimpleNamespace(
        max_position_embeddings=64,
        lora_config=SimpleNamespace(max_lora_rank=16),
        _adapter_manager=SimpleNamespace(model=SimpleNamespace()),
    )
    return AdapterReader(worker, way).read


def write(folder: Path, value: float, rank: int = 2, **config: Any) -> str:
    folder.mkdir()
    name = f"base_model.model.{NAME}"
    tensors = {
        f"{name}.lora_A.weight": torch.ones(rank, 4),
        f"{name}.lora_B.weight": torch.full((4, rank), value),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["o_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(values | config))
    return str(folder)


def test_each_file_has_its_own_numbers(tmp_path: Path, way: Way, read: Any) -> None:
    found = [read(i, "it", write(tmp_path / str(i), i / 2)) for i in range(4)]
    assert found == [(i, 2, i / 2) for i in range(4)]
    assert way.num_planned == 1


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 6}, 3.0),
        ({"use_rslora": True}, 2**0.5),
        ({"alpha_pattern": {"o_proj": 8}}, 4.0),
    ],
)
def test_another_scale_is_another_plan(
    tmp_path: Path, way: Way, read: Any, config: dict[str, Any], scale: float
) -> None:
    read(0, "it", write(tmp_path / "a", 1.0))
    assert read(1, "it", write(tmp_path / "b", 1.0, **config))[2] == pytest.approx(scale)
    assert read(2, "it", write(tmp_path / "c", 1.0))[2] == 1
    assert way.num_planned == 2


def test_another_rank_is_another_plan(tmp_path: Path, way: Way, read: Any) -> None:
    read(0, "it", write(tmp_path / "a", 1.0))
    assert read(1, "it", write(tmp_path / "b", 3.0, rank=4)) == (1, 4, 3.0)
    assert way.num_planned == 2


def test_a_file_that_was_cut_has_no_plan(tmp_path: Path, way: Way, read: Any) -> None:
    read(0, "it", write(tmp_path / "a", 1.0))
    folder = write(tmp_path / "b", 1.0)
    weights = Path(folder) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ValueError, match="shorter than its header says"):
        read(1, "it", folder)


def test_the_number_of_plans_is_bounded(
    tmp_path: Path, way: Way, read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "MAX_PLANS", 2)
    folders = [write(tmp_path / str(rank), 1.0, rank) for rank in (1, 2, 3)]
    for version, folder in enumerate(folders):
        read(version, "it", folder)
    assert way.num_planned == 3
    read(3, "it", folders[2])
    read(4, "it", folders[1])
    assert way.num_planned == 3, "the latest two are kept"
    read(5, "it", folders[0])
    assert way.num_planned == 4
