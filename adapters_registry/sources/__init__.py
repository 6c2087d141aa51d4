"""Where an adapter's files come from, besides uploads: a path, a hub, an S3-compatible store."""

from __future__ import annotations

from pathlib import Path

from adapters_registry.content.s3 import S3_SCHEME
from adapters_registry.errors import SourceRefused
from adapters_registry.sources.bucket import find_in_bucket
from adapters_registry.sources.hub import HUB_SCHEME, find_on_hub
from adapters_registry.sources.local import find_local
from adapters_registry.sources.source import Source

__all__ = ["Source", "find_source"]


def find_source(source: str, local_roots: tuple[Path, ...], max_bytes: int) -> Source:
    """Find a source: a path, `hf://org/repo@revision` or `s3://bucket/prefix`.

    Raises:
        SourceRefused: it may not be read, does not exist, or is over `max_bytes`.
        StoreUnavailable: the hub or the store does not answer.
    """
    if source.startswith(HUB_SCHEME):
        found = find_on_hub(source)
    elif source.startswith(S3_SCHEME):
        found = find_in_bucket(source)
    elif "://" in source:
        raise SourceRefused(
            f"source {source[:200]!r} is not supported: give a path, hf://org/repo@revision or "
            "s3://bucket/prefix, or upload the files"
        )
    else:
        found = find_local(source, local_roots)
    return found.limited(max_bytes)
