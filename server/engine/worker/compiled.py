"""Compiles C sources with the machine's C compiler when the engine starts.

The result is not cached, because it fits only the processor that it was compiled on.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

_FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")


class KernelUnavailable(Exception):
    """There is no compiler, it cannot compile the kernel, or the result cannot be loaded."""


@functools.cache
def compile_library(*sources: Path) -> tuple[ctypes.PyDLL, ctypes.CDLL]:
    """Return the library twice: one keeps Python's lock during calls, and one releases it.

    A process compiles it once.

    Calls that take microseconds keep the lock, as a step has many. torch must be loaded before, so
    that the library shares torch's OpenMP (libgomp.so.1) and its threads.

    Raises:
        KernelUnavailable: there is no compiler, or compiling or loading fails.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise KernelUnavailable("there is no C compiler (gcc or cc)")
    with tempfile.TemporaryDirectory(prefix="loraplex-") as directory:
        library = str(Path(directory) / "kernel.so")
        command = [compiler, *_FLAGS, "-o", library, *map(str, sources)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
            return _load(Path(library).read_bytes())
        except subprocess.CalledProcessError as error:
            raise KernelUnavailable(f"{compiler}: {error.stderr.strip()}") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KernelUnavailable(str(error)) from error


def _load(library: bytes) -> tuple[ctypes.PyDLL, ctypes.CDLL]:
    """Load a library from memory: containers often mount /tmp so that no code in it can run."""
    # It stays open: the dynamic loader knows libraries by their path, so none may use it again.
    memory = os.memfd_create("loraplex-kernel")
    with open(memory, "wb", closefd=False) as file:
        file.write(library)
    path = f"/proc/self/fd/{memory}"
    return ctypes.PyDLL(path), ctypes.CDLL(path)
