"""Compiles `rows.c` and `pack.c` with the machine's C compiler when the engine starts (0.2 s).

The result is not cached, because it fits only the processor that it was compiled on.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from server.engine.worker.lora_cpu.packing import PackedLayer
from server.engine.worker.lora_cpu.steps import BLOCK_ROWS, Block

_SOURCES = [str(Path(__file__).with_name(name)) for name in ("rows.c", "pack.c")]
_FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")


class KernelUnavailable(Exception):
    """There is no compiler, it cannot compile the kernel, or the result cannot be loaded."""


class RowsKernel:
    """The compiled functions: one adds each row's adapter in bfloat16, one packs adapters."""

    def __init__(self) -> None:
        """Compile and load the kernel.

        Raises:
            KernelUnavailable: there is no compiler, or compiling or loading fails.
        """
        # torch is loaded before, so that the kernel shares torch's OpenMP library (libgomp.so.1).
        library, unlocked = _compile()
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


def _compile() -> tuple[ctypes.PyDLL, ctypes.CDLL]:
    """Return the library twice: one keeps Python's lock during calls, and one releases it."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise KernelUnavailable("there is no C compiler (gcc or cc)")
    with tempfile.TemporaryDirectory(prefix="loraplex-") as directory:
        library = str(Path(directory) / "rows.so")
        command = [compiler, *_FLAGS, "-o", library, *_SOURCES]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
            # PyDLL keeps the interpreter's lock: the kernel's calls take microseconds, and a step
            # has many.
            return ctypes.PyDLL(library), ctypes.CDLL(library)
        except subprocess.CalledProcessError as error:
            raise KernelUnavailable(f"{compiler}: {error.stderr.strip()}") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KernelUnavailable(str(error)) from error
