"""Reads a model directory tensor by tensor, and writes one file by file, completely or not."""

from __future__ import annotations

import json
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from adapters_registry.check.base import BaseSpec
from training.errors import TrainingError

INDEX_FILE = "model.safetensors.index.json"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")
MAX_FILE_BYTES = 2 << 30


@dataclass(frozen=True)
class Checkpoint:
    """A model directory: its configuration, and the file of each tensor."""

    directory: Path
    config: dict[str, Any]
    file_of: dict[str, str]

    @classmethod
    def open(cls, directory: Path) -> Checkpoint:
        """Read the configuration, and the headers of the weight files.

        Raises:
            TrainingError: it isn't a model directory with complete safetensors files.
        """
        try:
            config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
            index = directory / INDEX_FILE
            if index.is_file():
                files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            else:
                files = {"model.safetensors"}
            file_of: dict[str, str] = {}
            for file in sorted(files):
                with safe_open(directory / file, framework="pt") as tensors:
                    file_of |= dict.fromkeys(tensors.keys(), file)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise TrainingError(
                f"{directory} isn't a model directory with weights in safetensors: {error}"
            ) from None
        return cls(directory, config, file_of)

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor."""
        with safe_open(self.directory / self.file_of[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor

    def linear_weights(self) -> set[str]:
        """Return the names of the weights that adapters can change and that quantising rounds.

        Raises:
            TrainingError: the architecture isn't known, or the base is quantised or lacks weights.
        """
        if "quantization_config" in self.config:
            raise TrainingError(
                f"{self.directory} is quantised already: start from its BF16 or FP16 checkpoint"
            )
        try:
            modules = BaseSpec.from_directory(self.directory, max_rank=1).modules
        except ValueError as error:
            raise TrainingError(str(error)) from None
        names = {f"{module}.weight" for module in modules}
        if missing := names - self.file_of.keys():
            raise TrainingError(
                f"{self.directory} lacks {len(missing)} weights, the first is {min(missing)}"
            )
        return names

    def copy_other_files(self, directory: Path) -> None:
        """Copy all files except weights and configuration: tokenizer, chat template and so on."""
        for file in self.directory.iterdir():
            is_weights = file.name.endswith(WEIGHT_SUFFIXES)
            if file.is_file() and not is_weights and file.name != "config.json":
                shutil.copyfile(file, directory / file.name)


class CheckpointWriter:
    """Writes tensors to files of bounded size, and their index."""

    def __init__(self, directory: Path, file_bytes: int = MAX_FILE_BYTES) -> None:
        """Write to an existing directory. A file ends once it has at least `file_bytes`."""
        self._directory, self._file_bytes = directory, file_bytes
        self._pending: dict[str, torch.Tensor] = {}
        self._weight_map: dict[str, str] = {}
        self._num_files = 0
        self._total_bytes = 0

    def add(self, tensors: dict[str, torch.Tensor]) -> None:
        """Add tensors. A file is written as soon as they fill it."""
        self._pending |= tensors
        if sum(tensor.nbytes for tensor in self._pending.values()) >= self._file_bytes:
            self._flush()

    def finish(self) -> None:
        """Write the remaining tensors and the index."""
        self._flush()
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": self._weight_map}
        (self._directory / INDEX_FILE).write_text(json.dumps(index, indent=1) + "\n")

    def _flush(self) -> None:
        if not self._pending:
            return
        self._num_files += 1
        name = f"model-{self._num_files:05}.safetensors"
        save_file(self._pending, self._directory / name, metadata={"format": "pt"})
        self._weight_map |= dict.fromkeys(self._pending, name)
        self._total_bytes += sum(tensor.nbytes for tensor in self._pending.values())
        self._pending = {}


def require_new(directory: Path) -> None:
    """Check that a directory doesn't exist or is empty.

    Raises:
        TrainingError: it isn't so.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise TrainingError(f"{directory} isn't empty; name a new directory")


@contextmanager
def whole_or_not_at_all(directory: Path) -> Iterator[Path]:
    """Yield a scratch directory. At the end it is renamed to this one; on errors it is deleted.

    Raises:
        TrainingError: the directory exists and isn't empty.
    """
    directory = directory.resolve()
    require_new(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = directory.parent / f".{directory.name}-{uuid.uuid4().hex}"
    scratch.mkdir()  # unlike tempfile, this gives the usual permissions
    try:
        yield scratch
        _set_usual_modes(scratch)
        scratch.rename(directory)
    except BaseException:
        shutil.rmtree(scratch)
        raise


def _set_usual_modes(directory: Path) -> None:
    """Give every file the mode that the umask gives to new files.

    safetensors writes files that only their owner can read. A server that runs as another user, for
    example in a container, couldn't read them.
    """
    probe = directory / ".mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in directory.rglob("*"):
        if file.is_file():
            file.chmod(mode)
