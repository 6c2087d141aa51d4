"""A prefix of an S3-compatible bucket that the server's credentials may read."""

from __future__ import annotations

from pathlib import Path

from adapters_registry.content.adapter_files import ADAPTER_FILES, ALL_FILES
from adapters_registry.content.s3 import Bucket
from adapters_registry.sources.source import Source, missing_file


def find_in_bucket(source: str) -> Source:
    """Find the adapter whose two files are below `s3://bucket/prefix`, without reading them yet.

    Raises:
        SourceRefused: a file is missing, or the source is not of this form.
        StoreUnavailable: the store does not answer, or refuses the server.
    """
    bucket = Bucket(source)
    files = []
    for name in ALL_FILES:
        if file := bucket.find(name):
            files.append(file)
        elif name in ADAPTER_FILES:
            raise missing_file(name)

    def stage(staged: Path) -> None:
        for file in files:
            bucket.download(file, staged / file.key)

    return Source(source, sum(file.size_bytes for file in files), stage)
