"""Reads an adapter's whole file and packs it by one call of compiled code (`pack.c`).

A step of the engine takes Python's lock thousands of times. If the reader took it for each tensor
and each conversion, running steps would take several times as long. So what depends on the file's
header alone is worked out once for all files that have the same header (`PackPlan`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from server.engine.worker.lora_cpu.packing import (
    LANES,
    Layout,
    PackedAdapter,
    PackedLayer,
    round_up,
)

_TYPES = {"F32": (0, 4), "F16": (1, 2), "BF16": (2, 2)}
"""`pack.c`'s number for a type and its size in bytes, by the type's name in safetensors."""
_LINE_BYTES = 64

PackParts = Callable[[object, int], int]
"""The compiled `pack_parts` of `pack.c`."""


_PART = np.dtype(
    [
        *(("from", np.uint64), ("to", np.uint64)),
        *(("type", np.int32), ("is_b", np.int32)),
        *(("rows", np.int64), ("columns", np.int64)),
        *(("first", np.int64), ("padded", np.int64)),
        ("scale", np.float32),
    ],
    align=True,
)
"""`part_t` of `pack.c`."""


@dataclass(frozen=True)
class Matrix:
    """Where a matrix is in a file, and what it is."""

    offset: int
    """In bytes, from the first number of the file on."""
    type: int
    shape: tuple[int, int]


@dataclass(frozen=True)
class Projection:
    """A and B of one projection of a layer, and the factor that B is scaled by."""

    a: Matrix
    b: Matrix
    scale: float


class AdapterFile:
    """A safetensors file in memory: the header's length, the header in JSON, and the numbers."""

    def __init__(self, path: Path) -> None:
        """Read the whole file, which is not needed afterwards.

        Raises:
            OSError: it cannot be read.
            ValueError: it is shorter than it says.
        """
        self._bytes = np.fromfile(path, np.uint8)
        self._start = 8 + int.from_bytes(self._bytes[:8].tobytes(), "little")
        if not 8 <= self._start <= len(self._bytes):
            raise ValueError("the weights' file is shorter than its header says")

    @property
    def numbers(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return the bytes of all matrices, in the file's order."""
        return self._bytes[self._start :]

    @property
    def shape(self) -> tuple[bytes, int]:
        """Return the header's digest and the size: files with the same have equal `matrices`."""
        return hashlib.sha256(self._bytes[8 : self._start].data).digest(), len(self._bytes)

    @cached_property
    def matrices(self) -> dict[str, Matrix]:
        """Return the matrices by name.

        Raises:
            ValueError: it is not a safetensors file, or a tensor is not a matrix of floating-point
                numbers.
        """
        header = json.loads(self._bytes[8 : self._start].tobytes())
        header.pop("__metadata__", None)
        return {name: self._matrix(name, **entry) for name, entry in header.items()}

    @staticmethod
    def number_bytes(number: int) -> int:
        """Return the bytes of one number of a matrix's `type`."""
        return next(size for each, size in _TYPES.values() if each == number)

    def _matrix(
        self, name: str, dtype: str, shape: list[int], data_offsets: tuple[int, int]
    ) -> Matrix:
        if dtype not in _TYPES or len(shape) != 2 or min(shape) < 0:
            raise ValueError(f"{name} is no matrix of floating-point numbers: {dtype} {shape}")
        number, size = _TYPES[dtype]
        begin, end = data_offsets
        inside = 0 <= begin <= end <= len(self._bytes) - self._start
        if not inside or end - begin != math.prod(shape) * size:
            raise ValueError("the weights' file is shorter than its header says")
        return Matrix(begin, number, (shape[0], shape[1]))


class PackPlan:
    """How an adapter's file becomes one block of packed layers, for all files of the same shape."""

    def __init__(self, layers: dict[str, tuple[PackedLayer, list[Projection | None]]]) -> None:
        """Work out where each matrix goes.

        Raises:
            ValueError: shapes do not fit a layer.
        """
        self._layouts: dict[str, tuple[int, Layout]] = {}
        """Each layer's place in the block, in numbers."""
        parts: list[tuple[float, ...]] = []
        self._numbers = 0
        for name, (layer, projections) in layers.items():
            layout = _layout(name, layer, projections)
            self._layouts[name] = self._numbers, layout
            parts += _parts(layer, projections, layout, 2 * self._numbers)
            self._numbers += layout.numbers
        with np.errstate(over="ignore"):  # a scale that is infinite then is found in `pack`
            self._parts = np.array(parts, _PART)
        """With offsets in the file and in the block instead of addresses."""

    def pack(self, file: AdapterFile, pack_parts: PackParts) -> dict[str, PackedAdapter]:
        """Pack a file's matrices.

        Raises:
            ValueError: weights are not finite.
        """
        block = np.zeros(2 * self._numbers + _LINE_BYTES, np.uint8)
        address = round_up(block.ctypes.data, _LINE_BYTES)
        parts = self._parts.copy()
        parts["from"] += np.uint64(file.numbers.ctypes.data)
        parts["to"] += np.uint64(address)
        if pack_parts(parts.ctypes.data, len(parts)):
            raise ValueError("weights that aren't finite")
        return {
            name: PackedAdapter.in_memory(address + 2 * place, layout, block)
            for name, (place, layout) in self._layouts.items()
        }


def _layout(name: str, layer: PackedLayer, projections: list[Projection | None]) -> Layout:
    for projection, width in zip(projections, layer.widths, strict=True):
        if projection:
            try:
                layer.check_shapes(projection.a.shape, projection.b.shape, width)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
    ranks = [projection.a.shape[0] if projection else 0 for projection in projections]
    return Layout.of(ranks, layer.features, layer.widths)


def _parts(
    layer: PackedLayer, projections: list[Projection | None], layout: Layout, to_a: int
) -> list[tuple[float, ...]]:
    parts: list[tuple[float, ...]] = []
    first, ranks = 0, sum(layout.ranks)
    to_b = to_a + 2 * layout.a_numbers
    for index, projection in enumerate(projections):
        if projection:
            a, b, width = projection.a, projection.b, round_up(layer.widths[index], LANES)
            parts.append((a.offset, to_a, a.type, 0, *a.shape, first, ranks, 1.0))
            parts.append((b.offset, to_b, b.type, 1, *b.shape, 0, width, projection.scale))
        first += layout.ranks[index]
        to_b += 2 * layout.b_numbers[index]
    return parts
