"""An adapter's two files: their names, their digest, and how they are made durable."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE)

_CHUNK_BYTES = 1 << 20


def digest_of(directory: Path) -> tuple[str, int]:
    """Return the sha256 over both files, in hex, and their size in bytes.

    Name, length and bytes of each file are hashed, in a fixed order.
    """
    digest, size_bytes = hashlib.sha256(), 0
    for name in ADAPTER_FILES:
        file = directory / name
        length = file.stat().st_size
        size_bytes += length
        digest.update(f"{name}\0{length}\0".encode())
        with file.open("rb") as handle:
            while chunk := handle.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest(), size_bytes


def make_durable(staged: Path) -> tuple[str, int]:
    """Flush the two files to disk, make them read-only and remove everything else.

    Returns their digest and size, as `digest_of` does.
    """
    digest, size_bytes = digest_of(staged)
    for file in staged.iterdir():
        if file.name not in ADAPTER_FILES:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
            continue
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        file.chmod(0o444)
    fsync_directory(staged)
    return digest, size_bytes


def size_of(directory: Path) -> int:
    """Return the bytes of the files in a directory."""
    return sum(file.stat().st_size for file in directory.iterdir())


def fsync_directory(directory: Path) -> None:
    """Flush a directory's entries to disk, so that a rename survives a power loss."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
