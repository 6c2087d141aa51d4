"""Reads an adapter's whole file and packs it by one call of compiled code (`pack.c`).

A step of the engine takes Python's lock thousands of times. If the reader took it for each tensor
and each conversion, running steps would take several times as long. This one takes it once, to read
the file's header.
"""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
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


class _Part(ctypes.Structure):
    """`part_t` of `pack.c`."""

    _fields_ = (
        ("from_", ctypes.c_void_p),
        ("to", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("is_b", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("first", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("scale", ctypes.c_float),
    )


@dataclass(frozen=True)
class Matrix:
    """A matrix of a file in memory."""

    address: int
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
            ValueError: it is not a safetensors file, or a tensor is not a matrix of floating-point
                numbers.
        """
        self._bytes = np.fromfile(path, np.uint8)
        self._start = 8 + int.from_bytes(self._bytes[:8].tobytes(), "little")
        if not 8 <= self._start <= len(self._bytes):
            raise ValueError("the weights' file is shorter than its header says")
        self._numbers = self._bytes.ctypes.data + self._start
        header = json.loads(self._bytes[8 : self._start].tobytes())
        header.pop("__metadata__", None)
        self.matrices = {name: self._matrix(name, **entry) for name, entry in header.items()}

    @property
    def numbers(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return the bytes of all matrices, in the file's order."""
        return self._bytes[self._start :]

    def offset(self, matrix: Matrix) -> int:
        """Return where a matrix begins in `numbers`."""
        return matrix.address - self._numbers

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
        return Matrix(self._numbers + begin, number, (shape[0], shape[1]))


def pack_file(
    layers: dict[str, tuple[PackedLayer, list[Projection | None]]], pack_parts: PackParts
) -> dict[str, PackedAdapter]:
    """Pack all layers of an adapter whose file is in memory into one block.

    Raises:
        ValueError: shapes do not fit a layer, or weights are not finite.
    """
    layouts = {name: _layout(name, *layer) for name, layer in layers.items()}
    num_bytes = 2 * sum(layout.numbers for layout in layouts.values())
    block = np.zeros(num_bytes + _LINE_BYTES, np.uint8)
    address = round_up(block.ctypes.data, _LINE_BYTES)
    parts: list[_Part] = []
    packed = {}
    for name, (layer, projections) in layers.items():
        layout = layouts[name]
        b = address + 2 * layout.a_numbers
        parts += _parts(layer, projections, layout, address, b)
        packed[name] = PackedAdapter.in_memory(address, b, layout, block)
        address += 2 * layout.numbers
    if pack_parts((_Part * len(parts))(*parts), len(parts)):
        raise ValueError("weights that aren't finite")
    return packed


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
    layer: PackedLayer, projections: list[Projection | None], layout: Layout, to_a: int, to_b: int
) -> list[_Part]:
    parts, first = [], 0
    for index, projection in enumerate(projections):
        if projection:
            a, b, stride = projection.a, projection.b, round_up(layer.widths[index], LANES)
            parts.append(_Part(a.address, to_a, a.type, 0, *a.shape, first, 0, 1.0))
            parts.append(_Part(b.address, to_b, b.type, 1, *b.shape, 0, stride, projection.scale))
        first += layout.ranks[index]
        to_b += 2 * layout.b_numbers[index]
    return parts
