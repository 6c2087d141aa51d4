"""Artefacts without an adapter, and archives that are hostile."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from adapters_registry.content.adapter_files import (
    ADAPTER_FILES,
    CONFIG_FILE,
    WEIGHTS_FILE,
)
from adapters_registry.errors import QuotaExceeded, SourceRefused
from adapters_registry.sources import Access, find_source
from tests.adapters_registry.sources.oci.packing import (
    MIB,
    MODELPACK,
    OCI_LAYER,
    content_of,
    plain,
)
from tests.oci_server import Blob, OciServer, tar_of


def test_artefacts_without_an_adapter(
    oci_server: OciServer, access: Access, repository: str, files: dict[str, bytes]
) -> None:
    source = f"oci://{oci_server.host}/{repository}"
    named = plain(files, "org.cncf.model.filepath", f"{MODELPACK}.weight.v1.raw")
    oci_server.push(repository, [named[0]])
    with pytest.raises(SourceRefused, match=f"{WEIGHTS_FILE} is missing"):
        find_source(source, access)
    twice = [
        Blob(layer.content, layer.media_type, {"org.cncf.model.filepath": f"{folder}/{name}"})
        for folder in ("a", "b")
        for layer, name in zip(named, files, strict=True)
    ]
    oci_server.push(repository, twice)
    with pytest.raises(SourceRefused, match="2 adapters, in 'a', 'b': pack each alone"):
        find_source(source, access)


def staging_is_refused(
    oci_server: OciServer, access: Access, repository: str, layers: list[Blob], staged: Path
) -> str:
    oci_server.push(repository, layers)
    found = find_source(f"oci://{oci_server.host}/{repository}", access)
    with pytest.raises(SourceRefused) as refused:
        found.stage(staged)
    return str(refused.value)


def test_archives_that_are_bombs(
    oci_server: OciServer,
    access: Access,
    repository: str,
    files: dict[str, bytes],
    staged: Path,
) -> None:
    """Little is written, and little held, however much they would unpack to."""
    gzipped = f"{OCI_LAYER}+gzip"
    in_front = tar_of({"zeros.bin": bytes(8 * MIB)} | files, compress=True)
    message = staging_is_refused(oci_server, access, repository, [Blob(in_front, gzipped)], staged)
    assert "too large when it is unpacked" in message
    weights = tar_of({CONFIG_FILE: b"{}", WEIGHTS_FILE: bytes(8 * MIB)}, compress=True)
    message = staging_is_refused(oci_server, access, repository, [Blob(weights, gzipped)], staged)
    assert "over the limit of 1 MiB" in message
    assert sum(file.stat().st_size for file in staged.rglob("*") if file.is_file()) < 10


def test_archives_with_hostile_members(
    oci_server: OciServer,
    access: Access,
    repository: str,
    files: dict[str, bytes],
    tmp_path: Path,
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")

    def archive(*members: tuple[tarfile.TarInfo, bytes]) -> list[Blob]:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for member, content in members:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return [Blob(out.getvalue(), OCI_LAYER)]

    def member(path: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
        info = tarfile.TarInfo(path)
        info.type, info.linkname = kind, link
        return info

    def refused(name: str, layers: list[Blob]) -> str:
        staged = tmp_path / name
        staged.mkdir()
        return staging_is_refused(oci_server, access, repository, layers, staged)

    config = (member(CONFIG_FILE), files[CONFIG_FILE])
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        link = (member(WEIGHTS_FILE, kind, str(secret)), b"")
        assert f"{WEIGHTS_FILE} is missing" in refused(f"link{kind!r}", archive(config, link))
    assert "more than once" in refused("twice", archive(config, config))
    long = (member("x", tarfile.XHDTYPE), bytes(MIB // 2))
    assert "header that is too large" in refused("header", archive(config, long))
    sparse = (member(WEIGHTS_FILE, tarfile.GNUTYPE_SPARSE), b"")
    assert "sparse" in refused("sparse", archive(config, sparse))
    assert "cannot be read" in refused("none", [Blob(b"no archive" * 100, OCI_LAYER)])
    assert "cannot be read" in refused("zip", [Blob(b"no gzip" * 100, f"{OCI_LAYER}+gzip")])
    cut = gzip.compress(tar_of(files))[:-40]
    assert "cannot be read" in refused("cut", [Blob(cut, f"{OCI_LAYER}+gzip")])
    assert "zstd, which is not supported" in refused("zstd", [Blob(b"", f"{OCI_LAYER}+zstd")])


def test_paths_that_climb_are_only_names(
    oci_server: OciServer,
    access: Access,
    repository: str,
    files: dict[str, bytes],
    staged: Path,
) -> None:
    climbing = {f"../../{name}": content for name, content in files.items()}
    oci_server.push(repository, [Blob(tar_of(climbing), OCI_LAYER)])
    find_source(f"oci://{oci_server.host}/{repository}", access).stage(staged)
    assert content_of(staged) == files
    assert not [file for file in staged.parent.iterdir() if file.name in ADAPTER_FILES]


def test_sizes_are_reserved_before_files_are_written(
    oci_server: OciServer, repository: str, files: dict[str, bytes], staged: Path
) -> None:
    layers = [Blob(tar_of(files, compress=True), f"{OCI_LAYER}+gzip")]
    oci_server.push(repository, layers)
    grown: list[int] = []

    def refuse_the_second(size_bytes: int) -> None:
        grown.append(size_bytes)
        if len(grown) == 2:
            raise QuotaExceeded("full")

    access = Access((), MIB, (oci_server.url,), grow=refuse_the_second)
    found = find_source(f"oci://{oci_server.host}/{repository}", access)
    with pytest.raises(QuotaExceeded):
        found.stage(staged)
    assert grown == [len(files[CONFIG_FILE]), sum(map(len, files.values()))]
    assert [file.name for file in staged.rglob("*.*")] == [CONFIG_FILE]


@pytest.mark.parametrize(
    "bend",
    [
        {"layers": []},
        {"layers": "x"},
        {"layers": [{"mediaType": "x", "size": 1}]},
        {"layers": [{"mediaType": "x", "size": -1, "digest": "sha256:" + "0" * 64}]},
        {"layers": [{"mediaType": "x", "size": 1, "digest": "sha256:../../x"}]},
        {"layers": [7]},
    ],
)
def test_manifests_that_are_not_right(bend: dict[str, object]) -> None:
    from adapters_registry.sources.oci.layers import layers_of

    with pytest.raises(SourceRefused, match=r"no layers|describes a layer"):
        layers_of(bend)
