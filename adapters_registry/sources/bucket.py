"""A prefix of an S3-compatible bucket that the server's credentials may read."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from adapters_registry.content.adapter_files import (
    ADAPTER_FILES,
    CONFIG_FILE,
    SOURCE_FILES,
    left_out,
)
from adapters_registry.content.s3 import Bucket
from adapters_registry.sources.source import PICKLE_FILE, Source, missing_file

_MAX_LISTED = 1000
"""How many files of a prefix are looked at for what is said about it."""


def find_in_bucket(source: str) -> Source:
    """Find the adapter whose two files are below `s3://bucket/prefix`, without reading them yet.

    Raises:
        SourceRefused: a file is missing, or the source is not of this form.
        StoreUnavailable: the store does not answer, or refuses the server.
    """
    bucket = Bucket(source)
    files = []
    for name in SOURCE_FILES:
        if file := bucket.find(name):
            files.append(file)
        elif name in ADAPTER_FILES:
            raise missing_file(
                name, has_pickle=bucket.find(PICKLE_FILE) is not None, folders=_adapters_in(bucket)
            )
    keys = [file.key for file in islice(bucket.list(), _MAX_LISTED)]
    others = left_out(key for key in keys if "/" not in key)

    def stage(staged: Path) -> None:
        for file in files:
            bucket.download(file, staged / file.key)

    return Source(source, sum(file.size_bytes for file in files), stage, others)


def _adapters_in(bucket: Bucket) -> list[str]:
    """Return the folders of a prefix that have an adapter, unless it has one itself."""
    if bucket.find(CONFIG_FILE) is not None:
        return []
    keys = (file.key for file in islice(bucket.list(), _MAX_LISTED))
    return [
        f"{bucket.url}/{key.rpartition('/')[0]}" for key in keys if key.endswith(f"/{CONFIG_FILE}")
    ]
