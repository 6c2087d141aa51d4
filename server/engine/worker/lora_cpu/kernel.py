"""Calls the compiled LoRA functions, `rows.c` and `pack.c`."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from server.engine.worker.compiled import compile_library
from server.engine.worker.lora_cpu.packing import PackedLayer
from server.engine.worker.lora_cpu.steps import BLOCK_ROWS, Block

_SOURCES = [Path(__file__).with_name(name) for name in ("rows.c", "pack.c")]


class RowsKernel:
    """The compiled functions: one adds each row's adapter in bfloat16, one packs adapters."""

    def __init__(self) -> None:
        """Compile and load the kernel.

        Raises:
            KernelUnavailable: there is no compiler, or compiling or loading fails.
        """
        library, unlocked = compile_library(*_SOURCES)
        self._call = library.lora_rows
        self._call.restype = ctypes.c_int64
        pointer, integer = ctypes.c_void_p, ctypes.c_int64
        self._call.argtypes = (
            *(pointer, pointer, integer, pointer, integer),
            *(pointer, integer, ctypes.c_float, pointer),
        )
        self.pack_parts = unlocked.pack_parts
        self.pack_parts.restype = ctypes.c_int64
        self.pack_parts.argtypes = (pointer, integer)
        self._scratch = torch.empty(0, dtype=torch.bfloat16)

    def add(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        layer: PackedLayer,
        blocks: ctypes.Array[Block],
        scale: float,
    ) -> None:
        """Compute `y[row] += scale * B @ (A @ x[row])` for the rows (rows, features) in `blocks`.

        Raises:
            ValueError: a block's slot is empty.
        """
        numbers = len(blocks) * BLOCK_ROWS * layer.max_ranks
        if self._scratch.numel() < numbers:
            self._scratch = torch.empty(numbers, dtype=torch.bfloat16)
        if empty := self._call(
            layer.address,
            x.data_ptr(),
            x.stride(0),
            y.data_ptr(),
            y.stride(0),
            ctypes.addressof(blocks),
            len(blocks),
            scale,
            self._scratch.data_ptr(),
        ):
            raise ValueError(f"LoRA slot {empty - 1} is empty")
