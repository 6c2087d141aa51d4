"""The origin: an S3-compatible store that keeps every version's content, for all replicas.

Objects are `<prefix>/sha256/<digest>/<file>`. What is fetched is verified by `ContentStore`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from adapters_registry.content.adapter_files import ADAPTER_FILES
from adapters_registry.content.s3 import Bucket, File
from adapters_registry.errors import StoreUnavailable


class Origin:
    """Content by digest in a bucket. Every method raises `StoreUnavailable` without an answer."""

    def __init__(self, url: str) -> None:
        """`SourceRefused` where the URL isn't of the form `s3://bucket/prefix`."""
        self._bucket = Bucket(url)
        self.url = self._bucket.url

    def size_of(self, digest: str) -> int | None:
        """The content's bytes, or None where a file of it isn't there."""
        files = [self._bucket.find(_key(digest, name)) for name in ADAPTER_FILES]
        return None if None in files else sum(file.size_bytes for file in files if file)

    def put(self, digest: str, directory: Path) -> None:
        """Write what isn't there yet; complete when it returns."""
        for name in ADAPTER_FILES:
            there = self._bucket.find(_key(digest, name))
            if there is None or there.size_bytes != (directory / name).stat().st_size:
                self._bucket.upload(directory / name, _key(digest, name))

    def get(self, digest: str, directory: Path) -> None:
        """Write the content's files to a directory; `StoreUnavailable` if one isn't there."""
        for name in ADAPTER_FILES:
            file = self._bucket.find(_key(digest, name))
            if file is None:
                raise StoreUnavailable(f"{self.url} has no content sha256:{digest[:12]}")
            self._bucket.download(file, directory / name)

    def sizes(self) -> dict[str, int]:
        """Every digest of which something is there, and how many bytes."""
        sizes: dict[str, int] = defaultdict(int)
        for file in self._bucket.list():
            if digest := _digest(file):
                sizes[digest] += file.size_bytes
        return sizes

    def remove(self, digests: Collection[str]) -> None:
        """Delete content, for every replica."""
        if keys := [_key(digest, name) for digest in digests for name in ADAPTER_FILES]:
            self._bucket.delete(keys)


def _key(digest: str, name: str) -> str:
    return f"sha256/{digest}/{name}"


def _digest(file: File) -> str | None:
    """The digest that a file belongs to; None for a stranger, which is left alone."""
    match file.key.split("/"):
        case ["sha256", digest, name] if name in ADAPTER_FILES:
            return digest
    return None
