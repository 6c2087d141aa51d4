"""Compiles C sources with the machine's C compiler when the engine starts.

The result is kept for the next start. It fits only the kind of processor that it was compiled on.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from server.engine import environment

_FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")

_PROCESSORS = Path("/proc/cpuinfo")
_OF_PROCESSOR = (
    *("vendor_id", "cpu family", "model", "stepping", "cache size", "flags"),
    *("CPU", "Features"),
)
"""The lines of `_PROCESSORS` on which `-march=native` depends: those of x86, then those of ARM."""

_DIGEST_BYTES = hashlib.sha256().digest_size
_WORKERS = Path(__file__).parent


def _digest_of_sources() -> bytes:
    """Return a digest of all C sources of the workers."""
    files = sorted(_WORKERS.rglob("*.[ch]"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).digest()


_AT_IMPORT = _digest_of_sources()
"""A release that is installed over a running server must not give this one's modules its kernels:
an engine that starts again then would compute wrong numbers."""


class KernelUnavailable(Exception):
    """There is no compiler, it cannot compile the kernel, or the result cannot be used."""


@functools.cache
def compile_library(*sources: Path) -> tuple[ctypes.PyDLL, ctypes.CDLL]:
    """Return the library twice: one keeps Python's lock during calls, and one releases it.

    A process compiles it once, or not at all if an earlier one has kept the same library.

    Calls that take microseconds keep the lock, as a step has many. torch must be loaded before, so
    that the library shares torch's OpenMP (libgomp.so.1) and its threads.

    Raises:
        KernelUnavailable: there is no compiler, compiling or loading fails, or the sources are not
            those of the modules that this process has imported.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise KernelUnavailable("there is no C compiler (gcc or cc)")
    if _digest_of_sources() != _AT_IMPORT:
        raise KernelUnavailable("the program's files were replaced: restart the server")
    kept = _kept_file(compiler, sources)
    try:
        library = _read(kept) if kept else None
        if library is None:
            library = _compile(compiler, sources)
            if kept:
                with contextlib.suppress(OSError):  # then the next start compiles it again
                    _keep(library, kept)
        return _load(library)
    except subprocess.CalledProcessError as error:
        raise KernelUnavailable(f"{compiler}: {error.stderr.strip()}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelUnavailable(str(error)) from error


def _compile(compiler: str, sources: tuple[Path, ...]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="loraplex-") as directory:
        library = Path(directory) / "kernel.so"
        command = [compiler, *_FLAGS, "-o", str(library), *map(str, sources)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        return library.read_bytes()


def _load(library: bytes) -> tuple[ctypes.PyDLL, ctypes.CDLL]:
    """Load a library from memory: containers often mount /tmp so that no code in it can run."""
    # It stays open: the dynamic loader knows libraries by their path, so none may use it again.
    memory = os.memfd_create("loraplex-kernel")
    with open(memory, "wb", closefd=False) as file:
        file.write(library)
    path = f"/proc/self/fd/{memory}"
    return ctypes.PyDLL(path), ctypes.CDLL(path)


def _kept_file(compiler: str, sources: tuple[Path, ...]) -> Path | None:
    """Return where the compiled library is kept, or None if no server has named a folder.

    Its name is a digest of all that it depends on: sources, flags, compiler and processor. All
    headers of the workers count as sources.
    """
    folder = environment.kernel_cache()
    if folder is None:
        return None
    program = Path(compiler).resolve()
    cores = _PROCESSORS.read_text().split("\n\n") if _PROCESSORS.is_file() else [""]
    processor = [line for line in cores[0].splitlines() if line.startswith(_OF_PROCESSOR)]
    facts = [*_FLAGS, str(program), str(program.stat().st_mtime_ns), *processor]
    headers = sorted(_WORKERS.rglob("*.h"))
    facts += [file.read_text() for file in (*sources, *headers)]
    return folder / hashlib.sha256("\0".join(facts).encode()).hexdigest()


def _keep(library: bytes, kept: Path) -> None:
    """Write a library, after its digest, to where the next start looks for it."""
    kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as new:
        new.write(hashlib.sha256(library).digest() + library)
    Path(new.name).rename(kept)


def _read(kept: Path) -> bytes | None:
    """Return a kept library, or None.

    Only this user may be able to write it, since it is executed. A damaged one could end the
    process when it is loaded.
    """
    try:
        found = [kept.stat(), kept.parent.stat()]
        content = kept.read_bytes()
    except OSError:
        return None
    is_ours = all(each.st_uid == os.geteuid() and not each.st_mode & 0o022 for each in found)
    digest, library = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return library if is_ours and hashlib.sha256(library).digest() == digest else None
