"""The origin: an S3-compatible store that keeps every version's files for all replicas.

Objects are named `<prefix>/sha256/<digest>/<file>`. `ContentStore` verifies what it fetches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from adapters_registry.content.adapter_files import ADAPTER_FILES, ALL_FILES, companions_in
from adapters_registry.content.circuit_breaker import CircuitBreaker
from adapters_registry.content.s3 import Bucket, File
from adapters_registry.errors import StoreUnavailable


class Origin:
    """Files by digest in a bucket. Every method raises `StoreUnavailable` if the store is away."""

    def __init__(self, url: str) -> None:
        """Raise `SourceRefused` if the URL does not have the form `s3://bucket/prefix`."""
        self._bucket = Bucket(url)
        self.url = self._bucket.url
        self._breaker = CircuitBreaker(self.url)

    def size_of(self, digest: str) -> int | None:
        """Return the bytes of a digest's files, or None if one of them is missing."""
        files = self._files(digest)
        return sum(file.size_bytes for file in files.values()) if files else None

    def put(self, digest: str, directory: Path) -> None:
        """Write the files that are missing or damaged at the origin. It then has all of them.

        The two files of every adapter come last: where they are, the companions are, too.
        """
        for name in (*companions_in(directory), *ADAPTER_FILES):
            there = self._bucket.find(_key(digest, name))
            if there is None or not self._holds(there, directory / name):
                self._bucket.upload(directory / name, _key(digest, name))

    def get(self, digest: str, directory: Path) -> None:
        """Read a digest's files into a directory. Raises `StoreUnavailable` if one is missing.

        After several failures in a row the origin is not called for a while.
        """
        with self._breaker.calling():
            files = self._files(digest)
        if not files:
            raise StoreUnavailable(f"{self.url} has no content sha256:{digest[:12]}")
        for name, file in files.items():
            with self._breaker.calling():
                self._bucket.download(file, directory / name)

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every digest that has at least one file at the origin."""
        sizes: dict[str, int] = defaultdict(int)
        for file in self._bucket.list():
            if digest := _digest(file):
                sizes[digest] += file.size_bytes
        return sizes

    def remove(self, digests: Collection[str]) -> None:
        """Delete the files of some digests, for every replica."""
        if keys := [_key(digest, name) for digest in digests for name in ALL_FILES]:
            self._bucket.delete(keys)

    def _files(self, digest: str) -> dict[str, File]:
        """Return a content's files by name; none, unless the two of every adapter are there."""
        if any(self._bucket.find(_key(digest, name)) is None for name in ADAPTER_FILES):
            return {}
        found = {file.key.rpartition("/")[2]: file for file in self._bucket.list(_key(digest, ""))}
        return {name: found[name] for name in ALL_FILES if name in found}

    def _holds(self, there: File, file: Path) -> bool:
        """Return whether an object has the same bytes as a file. Stops at the first difference."""
        if there.size_bytes != file.stat().st_size:
            return False
        with file.open("rb") as here:
            return all(part == here.read(len(part)) for part in self._bucket.read(there))


def _key(digest: str, name: str) -> str:
    return f"sha256/{digest}/{name}"


def _digest(file: File) -> str | None:
    """Return the digest that a file belongs to, or None for files of others."""
    match file.key.split("/"):
        case ["sha256", digest, name] if name in ALL_FILES:
            return digest
    return None
