"""Compiles and calls `linear.c`, and packs weights as it reads them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch

from server.engine.worker.compiled import compile_library

LANES = 16
"""Features out that the kernel computes together (`vectors.h`)."""

WORD_WEIGHTS = 8
"""Weights of 4 bits in a number of 32 bits (`four_bit.h`)."""

_SOURCE = Path(__file__).with_name("linear.c")


class LinearStruct(ctypes.Structure):
    """`linear_t` of `linear.c`."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("in_features", ctypes.c_int64),
        ("out_features", ctypes.c_int64),
        ("scales", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("group", ctypes.c_int64),
    )


class LinearKernel:
    """The compiled function, and its working memory. One thread may use it at a time."""

    def __init__(self) -> None:
        """Compile and load the kernel (1.5 s).

        Raises:
            KernelUnavailable: there is no compiler, or compiling or loading fails.
        """
        library, _ = compile_library(_SOURCE)
        self._call = library.linear_rows
        self._call.restype = None
        pointer, integer = ctypes.c_void_p, ctypes.c_int64
        self._call.argtypes = (pointer, pointer, integer, pointer, integer, integer, pointer)
        self._scratch = torch.empty(0, dtype=torch.float32)

    def multiply(self, layer: LinearStruct, x: torch.Tensor) -> torch.Tensor:
        """Return the product of x (rows, features in) with a layer: (rows, features out)."""
        rows, features = x.shape
        y = torch.empty(rows, layer.out_features, dtype=torch.bfloat16)
        if self._scratch.numel() < rows * features:
            # While vLLM loads a model, torch's default type is the model's.
            self._scratch = torch.empty(rows * features, dtype=torch.float32)
        self._call(
            ctypes.addressof(layer),
            x.data_ptr(),
            x.stride(0),
            y.data_ptr(),
            y.stride(0),
            rows,
            self._scratch.data_ptr(),
        )
        return y


@dataclass(frozen=True)
class PackedWeight:
    """A weight as the kernel reads it."""

    out_features: int
    in_features: int
    numbers: torch.Tensor
    scales: torch.Tensor | None = None
    """Of a weight in 4 bits: (features out / LANES, groups, LANES) in bfloat16."""
    zeros: torch.Tensor | None = None
    """Of a weight in 4 bits, if it has zero points: as `scales`, in int8."""


class PackedLinear:
    """A linear layer as the kernel reads it."""

    def __init__(
        self, kernel: LinearKernel, weight: PackedWeight, bias: torch.Tensor | None = None
    ) -> None:
        """Take a weight that was packed, and a bias (features out)."""
        self._kernel, self._weight = kernel, weight
        self._bias = None if bias is None else bias.float().contiguous()
        self._plain = _struct(weight, None)
        self._biased = _struct(weight, self._bias)

    def struct(self, *, with_bias: bool) -> LinearStruct:
        """Return what C code reads of this layer. This object must live as long."""
        return self._biased if with_bias else self._plain

    def apply(self, x: torch.Tensor, *, with_bias: bool = False) -> torch.Tensor:
        """Return the product with x, whose last dimension has the features in.

        Raises:
            ValueError: x has another type or number of features.
        """
        weight = self._weight
        if x.dtype != torch.bfloat16 or x.shape[-1] != weight.in_features:
            shape = (weight.out_features, weight.in_features)
            raise ValueError(f"a layer of {shape} on x {tuple(x.shape)} {x.dtype}")
        rows = x.reshape(-1, x.shape[-1])
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        layer = self.struct(with_bias=with_bias)
        return self._kernel.multiply(layer, rows).view(*x.shape[:-1], weight.out_features)


def fits(weight: torch.Tensor) -> bool:
    """Say whether the kernel can compute a layer with this weight (features out, features in)."""
    return (
        weight.dtype == torch.bfloat16
        and weight.ndim == 2
        and weight.shape[0] % LANES == 0
        and weight.shape[1] % 2 == 0
        and weight.numel() > 0
    )


def pack(weight: torch.Tensor) -> PackedWeight:
    """Pack a weight (features out, features in) in bfloat16 that `fits`."""
    out_features, in_features = weight.shape
    parts = weight.detach().view(out_features // LANES, LANES, in_features // 2, 2)
    return PackedWeight(out_features, in_features, parts.transpose(1, 2).contiguous())


def fits_four_bit(words: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None) -> bool:
    """Say whether the kernel can compute a layer with this weight, as `pack_four_bit` takes it."""
    if words.ndim != 2 or scales.ndim != 2 or words.numel() == 0 or scales.numel() == 0:
        return False
    out_features, in_features = words.shape[0], words.shape[1] * WORD_WEIGHTS
    groups = scales.shape[1]
    return (
        words.dtype == torch.int32
        and scales.dtype == torch.bfloat16
        and out_features % LANES == 0
        and scales.shape[0] == out_features
        and in_features % groups == 0
        and in_features // groups % WORD_WEIGHTS == 0
        and (zeros is None or (zeros.dtype == torch.int8 and zeros.shape == scales.shape))
    )


def pack_four_bit(
    words: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None
) -> PackedWeight:
    """Pack a weight in 4 bits that `fits_four_bit`.

    `words` is (features out, features in / WORD_WEIGHTS) in int32. A word's lowest 4 bits are the
    first of its features, and each number from 0 to 15 stands for -8 to 7. `scales` is (features
    out, groups) in bfloat16; a group is features in that follow each other. `zeros` is what is
    subtracted from the numbers of each group, in int8, or None if nothing is.
    """
    out_features, num_words = words.shape
    return PackedWeight(
        out_features,
        num_words * WORD_WEIGHTS,
        _by_lanes(_in_halves(words)),
        _by_lanes(scales),
        None if zeros is None else _by_lanes(zeros),
    )


def _in_halves(words: torch.Tensor) -> torch.Tensor:
    """Return words whose numbers 0, 2, 4 and 6 stand in the lower half, and the others above."""
    halves = torch.zeros_like(words)
    order = (*range(0, WORD_WEIGHTS, 2), *range(1, WORD_WEIGHTS, 2))
    for place, number in enumerate(order):
        halves |= (words >> 4 * number & 15) << 4 * place
    return halves


def _by_lanes(numbers: torch.Tensor) -> torch.Tensor:
    """Return (features out, n) as (features out / LANES, n, LANES)."""
    return numbers.detach().reshape(-1, LANES, numbers.shape[1]).transpose(1, 2).contiguous()


def _struct(weight: PackedWeight, bias: torch.Tensor | None) -> LinearStruct:
    scales = weight.scales
    return LinearStruct(
        weight.numbers.data_ptr(),
        None if bias is None else bias.data_ptr(),
        weight.in_features,
        weight.out_features,
        None if scales is None else scales.data_ptr(),
        None if weight.zeros is None else weight.zeros.data_ptr(),
        0 if scales is None else weight.in_features // scales.shape[1],
    )
