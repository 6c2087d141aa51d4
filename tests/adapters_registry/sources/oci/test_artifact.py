"""Adapters from a real registry, in every form of packing that is recognised."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters_registry.content.adapter_files import (
    ADAPTER_FILES,
    GENERATION_FILE,
    WEIGHTS_FILE,
)
from adapters_registry.errors import SourceRefused, StoreUnavailable
from adapters_registry.sources import Access, find_source
from tests.adapters_registry.sources.oci.packing import (
    OCI_LAYER,
    content_of,
    packings,
)
from tests.oci_server import INDEX, MANIFEST, Blob, OciServer, tar_of
from tests.tiny import AdapterFactory


@pytest.mark.parametrize("name", packings(dict.fromkeys(ADAPTER_FILES, b"")))
def test_every_packing(
    oci_server: OciServer,
    access: Access,
    repository: str,
    files: dict[str, bytes],
    staged: Path,
    name: str,
) -> None:
    layers, config_type, kind = packings(files)[name]
    digest = oci_server.push(repository, layers, tag="v2", config_type=config_type)
    asked = f"oci://{oci_server.host}/{repository}:v2"
    found = find_source(asked, access)
    assert found.name == f"oci://{oci_server.host}/{repository}@{digest}"
    assert found.details == {"artifact": {"reference": asked, "manifest": digest, "kind": kind}}
    assert not list(staged.iterdir()), "nothing is read yet"
    found.stage(staged)
    assert content_of(staged) == files


def test_a_companion_comes_along(
    oci_server: OciServer,
    access: Access,
    repository: str,
    files: dict[str, bytes],
    staged: Path,
) -> None:
    everything = files | {GENERATION_FILE: b"{}", "evil.py": b"import os"}
    oci_server.push(repository, [Blob(tar_of(everything), OCI_LAYER)])
    find_source(f"oci://{oci_server.host}/{repository}", access).stage(staged)
    assert content_of(staged) == files | {GENERATION_FILE: b"{}"}


def test_what_is_pinned_stays_when_the_tag_moves(
    oci_server: OciServer,
    access: Access,
    repository: str,
    files: dict[str, bytes],
    staged: Path,
) -> None:
    layers = packings(files)["modelpack"][0]
    oci_server.push(repository, layers, tag="stable")
    found = find_source(f"oci://{oci_server.host}/{repository}:stable", access)
    oci_server.push(repository, layers[:1], tag="stable")
    found.stage(staged)
    assert content_of(staged) == files
    assert find_source(found.name, access).name == found.name


def test_an_index_of_one_manifest(
    oci_server: OciServer,
    access: Access,
    repository: str,
    files: dict[str, bytes],
    staged: Path,
) -> None:
    digest = oci_server.push(repository, packings(files)["modelpack"][0], tag="one")
    other = oci_server.push(repository, packings(files)["oras"][0], tag="two")
    attested = {"platform": {"os": "unknown", "architecture": "unknown"}}

    def push_index(*entries: dict[str, object]) -> None:
        manifests = [{"mediaType": MANIFEST, "size": 2, **entry} for entry in entries]
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}
        oci_server.push_manifest(repository, "latest", index)

    source = f"oci://{oci_server.host}/{repository}"
    push_index({"digest": digest}, {"digest": other, **attested})
    found = find_source(source, access)
    assert found.name == f"{source}@{digest}"
    found.stage(staged)
    assert content_of(staged) == files
    push_index({"digest": digest}, {"digest": other})
    with pytest.raises(SourceRefused, match="index of 2 manifests: name one by its digest"):
        find_source(source, access)


@pytest.mark.parametrize("which", ["size", "bytes"])
def test_a_damaged_blob_is_noticed(
    oci_server: OciServer,
    access: Access,
    repository: str,
    make_adapter: AdapterFactory,
    staged: Path,
    which: str,
) -> None:
    adapter = make_adapter(seed=sum(map(ord, which)))  # a blob of its own: the registry shares them
    files = {name: (adapter / name).read_bytes() for name in ADAPTER_FILES}
    oci_server.push(repository, packings(files)["modelpack"][0])
    found = find_source(f"oci://{oci_server.host}/{repository}", access)
    place = oci_server.file_of_blob(oci_server.push_blob(repository, files[WEIGHTS_FILE]))
    damaged = bytearray(files[WEIGHTS_FILE])
    damaged[-1] ^= 1
    place.write_bytes(damaged + (b"more" if which == "size" else b""))
    with pytest.raises(StoreUnavailable, match="is damaged: it should be sha256:"):
        found.stage(staged)
