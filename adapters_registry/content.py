"""The content-addressed folder: an adapter's files under the digest of what they hold.

A directory appears whole or not at all (written aside, flushed to disk, renamed), is read-only
afterwards, and never changes: the path of a digest always holds the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE)

_CHUNK_BYTES = 1 << 20


class ContentStore:
    """Immutable adapter directories below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._staging = root / "staging"
        self._staging.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Where the content of a digest is, or would be."""
        return self.root / "sha256" / digest[:2] / digest

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A scratch directory for one upload, on the same file system; gone afterwards."""
        directory = self._staging / uuid.uuid4().hex
        directory.mkdir()
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def clear_staging(self) -> None:
        """Remove what uploads cut off by a crash have left; only at start, before any upload."""
        for leftover in self._staging.iterdir():
            shutil.rmtree(leftover, ignore_errors=True)

    def commit(self, staged: Path) -> tuple[str, int]:
        """Move a staged directory to its digest's path; return the digest and the size in bytes.

        Content that is already there is left as it is.
        """
        digest, size_bytes = digest_of(staged)
        target = self.path(digest)
        if target.is_dir():
            return digest, size_bytes
        for file in staged.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
            file.chmod(0o444)
        _fsync_directory(staged)
        target.parent.mkdir(parents=True, exist_ok=True)
        for parent in (self.root, target.parent.parent):
            _fsync_directory(parent)
        try:
            staged.rename(target)
        except OSError:
            if not target.is_dir():  # else: the same content, committed a moment ago
                raise
        _fsync_directory(target.parent)
        return digest, size_bytes


def digest_of(directory: Path) -> tuple[str, int]:
    """sha256 over the adapter's files (name, length, bytes; in a fixed order), and their size."""
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


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
