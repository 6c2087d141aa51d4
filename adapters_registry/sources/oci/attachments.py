"""Signatures that are attached to an artefact: manifests that name it as their subject.

So `oras attach` and cosign store Sigstore bundles. Of these only the bundles over a list of files
are read, as the package `model-signing` makes them. Cosign's own are over the manifest.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Collection, Iterator
from itertools import chain
from typing import Any

from adapters_registry.sources.oci.client import OciClient
from adapters_registry.sources.oci.layers import layers_of
from adapters_registry.sources.oci.reference import DIGEST

_BUNDLE = re.compile(r"application/vnd\.dev\.sigstore\.bundle[.+;].*")
_OVER_FILES = "https://model_signing/signature/"
_MAX_BUNDLES = 16
"""How many attached bundles are read; those that the registry names later are passed over."""
_MAX_BUNDLE_BYTES = 1 << 20


def attached_signatures(client: OciClient, digests: Collection[str]) -> Iterator[bytes]:
    """Yield the signatures over files that are attached to one of these digests of an artefact.

    Raises:
        SourceRefused: an attached manifest cannot be read.
        StoreUnavailable: the registry does not answer.
    """
    num_read = 0
    for digest in digests:
        for referrer in chain.from_iterable(map(_bundles_of, client.referrers(digest))):
            if num_read == _MAX_BUNDLES:
                return
            num_read += 1
            if bundle := _read(client, referrer, digest):
                yield bundle


def _bundles_of(index: dict[str, Any]) -> Iterator[str]:
    """Yield the digests of the manifests that an index lists as Sigstore bundles."""
    listed = index.get("manifests")
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, dict) and _is_bundle(entry.get("artifactType")):
            digest = entry.get("digest")
            if isinstance(digest, str) and DIGEST.fullmatch(digest):
                yield digest


def _is_bundle(kind: Any) -> bool:
    return isinstance(kind, str) and _BUNDLE.fullmatch(kind) is not None


def _read(client: OciClient, referrer: str, subject: str) -> bytes | None:
    """Return the bundle of a manifest, or None if it is none over files, or of another subject."""
    manifest, _ = client.manifest(referrer)
    named = manifest.get("subject")
    if not isinstance(named, dict) or named.get("digest") != subject:
        return None
    layer = layers_of(manifest)[0]
    if layer.size_bytes > _MAX_BUNDLE_BYTES:
        return None
    bundle = b"".join(client.blob(layer.digest, layer.size_bytes))
    return bundle if _is_over_files(bundle) else None


def _is_over_files(bundle: bytes) -> bool:
    """Return whether a bundle says that it signs a list of files. Whether it does is seen later."""
    try:
        payload = base64.b64decode(json.loads(bundle)["dsseEnvelope"]["payload"])
        predicate = json.loads(payload)["predicateType"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    return isinstance(predicate, str) and predicate.startswith(_OVER_FILES)
