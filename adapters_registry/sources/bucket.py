"""A prefix of an S3-compatible bucket, as far as the server's credentials reach."""

from __future__ import annotations

from pathlib import Path

from adapters_registry.content.adapter_files import ADAPTER_FILES
from adapters_registry.content.s3 import Bucket
from adapters_registry.sources.source import Source, missing_file


def find_in_bucket(source: str) -> Source:
    """The adapter whose two files stand below `s3://bucket/prefix`, nothing read of them yet.

    Raises:
        SourceRefused: a file isn't there, or the source isn't named so.
        StoreUnavailable: the store doesn't answer, or refuses the server.
    """
    bucket = Bucket(source)
    files = []
    for name in ADAPTER_FILES:
        file = bucket.find(name)
        if file is None:
            raise missing_file(name)
        files.append(file)

    def stage(staged: Path) -> None:
        for file in files:
            bucket.download(file, staged / file.key)

    return Source(source, sum(file.size_bytes for file in files), stage)
