"""Reads safetensors without torch: the header of a file, and the values of a tensor.

The format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

TRAINED_QUANTIZATION = "trained_over"
"""The metadata key of an adapter's weights that names the base's quantization in training. An empty
value means none."""

MAX_HEADER_BYTES = 8 << 20
"""Enough for 40,000 tensors. An adapter of a 70B base has 1,120."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}

Values = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file: its header entry, and where its bytes are."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int

    @property
    def is_float(self) -> bool:
        """Return whether the values are float32, float16 or bfloat16."""
        return self.dtype in _DTYPES

    def load(self) -> Values:
        """Read all values."""
        count = math.prod(self.shape)
        raw = np.fromfile(self.file, _DTYPES[self.dtype], count=count, offset=self.offset)
        return _as_float32(raw, self.dtype).reshape(self.shape)

    def load_range(self, start: int, count: int) -> Values:
        """Read `count` values from the one at `start` on, in the file's order."""
        dtype = _DTYPES[self.dtype]
        offset = self.offset + start * dtype.itemsize
        return _as_float32(np.fromfile(self.file, dtype, count=count, offset=offset), self.dtype)

    def load_rows(self, num_rows: int) -> Values:
        """Read at most `num_rows` rows of a matrix, evenly spaced. Only their bytes are read."""
        raw = np.memmap(self.file, _DTYPES[self.dtype], "r", self.offset, self.shape)
        rows = np.linspace(0, self.shape[0] - 1, min(num_rows, self.shape[0])).astype(int)
        return _as_float32(raw[rows], self.dtype)


def _as_float32(raw: np.ndarray[Any, Any], dtype: str) -> Values:
    """Return the values as float32. numpy lacks bfloat16, which is the upper half of float32."""
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float32)


def read_header(file: Path, max_bytes: int = MAX_HEADER_BYTES) -> dict[str, Tensor]:
    """Return the tensors of a file by name.

    Raises:
        ValueError: it is not a safetensors file, or its header is longer than `max_bytes`.
        OSError: it cannot be read.
    """
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > max_bytes:
            raise ValueError(f"its header claims {length:,} bytes, more than {max_bytes:,}")
        try:
            with safe_open(file, framework="numpy"):  # the library checks offsets and sizes
                pass
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        header = json.loads(handle.read(length))
    header.pop("__metadata__", None)
    start = 8 + length
    return {
        key: Tensor(file, entry["dtype"], tuple(entry["shape"]), start + begin, end - begin)
        for key, entry in header.items()
        for begin, end in (entry["data_offsets"],)
    }


def make_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str]
) -> bytes:
    """Return the beginning of a file that holds these tensors, one after the other.

    Each is given by its name, its type as in the format, its shape, and its size in bytes.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for key, dtype, shape, num_bytes in tensors:
        end = start + num_bytes
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the values
    return len(text).to_bytes(8, "little") + text


def trained_quantization(file: Path) -> str | None:
    """Return the base's quantization when this adapter was trained. Empty means none.

    Returns None if the file does not say it.

    Raises:
        ValueError: it is not a safetensors file.
    """
    return read_metadata(file).get(TRAINED_QUANTIZATION)


def read_metadata(file: Path) -> dict[str, str]:
    """Return what a file says of itself.

    Raises:
        ValueError: it is not a safetensors file.
    """
    try:
        with safe_open(file, framework="numpy") as tensors:
            return dict(tensors.metadata() or {})
    except SafetensorError as error:
        raise ValueError(str(error)) from error
