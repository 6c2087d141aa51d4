"""A directory is written whole or not at all, in files of bounded size."""

import json
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training.errors import TrainingError
from training.models.checkpoint import INDEX_FILE, CheckpointWriter, whole_or_not_at_all


def test_files_have_the_mode_that_new_files_have(tmp_path: Path) -> None:
    with whole_or_not_at_all(tmp_path / "out") as scratch:
        (scratch / "sub").mkdir()
        for name in ("a", "sub/b"):
            (scratch / name).touch(mode=0o600)
    (tmp_path / "usual").touch()
    wanted = stat.S_IMODE((tmp_path / "usual").stat().st_mode)
    found = [tmp_path / "out" / "a", tmp_path / "out" / "sub" / "b"]
    assert [stat.S_IMODE(file.stat().st_mode) for file in found] == [wanted, wanted]
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with whole_or_not_at_all(tmp_path / "out") as scratch:
            (scratch / "a").touch()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").touch()
    with (
        pytest.raises(TrainingError, match="isn't empty"),
        whole_or_not_at_all(tmp_path / "out"),
    ):
        pass


def test_files_of_bounded_size_have_an_index(tmp_path: Path) -> None:
    tensors = {f"layer{number}": torch.full((100,), float(number)) for number in range(5)}
    writer = CheckpointWriter(tmp_path, file_bytes=800)
    for name, tensor in tensors.items():
        writer.add({name: tensor})
    writer.finish()
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    files = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert len(files) == 3, "a file ends with the tensor that fills it"
    assert set(index["weight_map"].values()) == set(files)
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name])
