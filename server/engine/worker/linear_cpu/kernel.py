"""Compiles and calls `linear.c`, and packs weights as it reads them."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from server.engine.worker.compiled import compile_library

LANES = 16
"""Features out that the kernel computes together (`vectors.h`)."""

_SOURCE = Path(__file__).with_name("linear.c")


class LinearStruct(ctypes.Structure):
    """`linear_t` of `linear.c`."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("in_features", ctypes.c_int64),
        ("out_features", ctypes.c_int64),
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


class PackedLinear:
    """A linear layer as the kernel reads it."""

    def __init__(
        self, kernel: LinearKernel, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> None:
        """Pack a weight (features out, features in) that `fits`, and a bias (features out)."""
        self._kernel = kernel
        out_features, in_features = self._shape = weight.shape
        self._weights = pack(weight)
        self._bias = None if bias is None else bias.float().contiguous()
        address = None if self._bias is None else self._bias.data_ptr()
        pointer = self._weights.data_ptr()
        self._plain = LinearStruct(pointer, None, in_features, out_features)
        self._biased = LinearStruct(pointer, address, in_features, out_features)

    def struct(self, *, with_bias: bool) -> LinearStruct:
        """Return what C code reads of this layer. This object must live as long."""
        return self._biased if with_bias else self._plain

    def apply(self, x: torch.Tensor, *, with_bias: bool = False) -> torch.Tensor:
        """Return the product with x, whose last dimension has the features in.

        Raises:
            ValueError: x has another type or number of features.
        """
        if x.dtype != torch.bfloat16 or x.shape[-1] != self._shape[1]:
            raise ValueError(f"a layer of {tuple(self._shape)} on x {tuple(x.shape)} {x.dtype}")
        rows = x.reshape(-1, x.shape[-1])
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        layer = self.struct(with_bias=with_bias)
        return self._kernel.multiply(layer, rows).view(*x.shape[:-1], self._shape[0])


def fits(weight: torch.Tensor) -> bool:
    """Say whether the kernel can compute a layer with this weight (features out, features in)."""
    return (
        weight.dtype == torch.bfloat16
        and weight.ndim == 2
        and weight.shape[0] % LANES == 0
        and weight.shape[1] % 2 == 0
        and weight.numel() > 0
    )


def pack(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight as (features out / LANES, pairs of features in, LANES, 2)."""
    out_features, in_features = weight.shape
    parts = weight.detach().view(out_features // LANES, LANES, in_features // 2, 2)
    return parts.transpose(1, 2).contiguous()
