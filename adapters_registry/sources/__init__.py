"""Where an adapter's files come from, besides uploads: a path, a hub, a bucket, a registry."""

from __future__ import annotations

from adapters_registry.content.s3 import S3_SCHEME
from adapters_registry.errors import SourceRefused
from adapters_registry.sources.access import Access
from adapters_registry.sources.bucket import find_in_bucket
from adapters_registry.sources.hub import HUB_SCHEME, find_on_hub
from adapters_registry.sources.local import find_local
from adapters_registry.sources.oci.artifact import find_in_registry
from adapters_registry.sources.oci.reference import OCI_SCHEME
from adapters_registry.sources.source import Source

__all__ = ["Access", "Source", "find_source"]


def find_source(source: str, access: Access) -> Source:
    """Find a source: a path, `hf://org/repo@revision`, `s3://bucket/prefix` or `oci://registry/repo`.

    Raises:
        SourceRefused: it may not be read, does not exist, or is larger than it may be.
        StoreUnavailable: the hub, the store or the registry does not answer.
    """
    if source.startswith(HUB_SCHEME):
        found = find_on_hub(source)
    elif source.startswith(S3_SCHEME):
        found = find_in_bucket(source)
    elif source.startswith(OCI_SCHEME):
        found = find_in_registry(source, access)
    elif "://" in source:
        raise SourceRefused(
            f"source {source[:200]!r} is not supported: give a path, hf://org/repo@revision, "
            "s3://bucket/prefix or oci://registry/repository:tag, or upload the files"
        )
    else:
        found = find_local(source, access.local_roots)
    return found.limited(access.max_bytes)
