"""Finds an adapter in an artefact of a registry: by its two files, whatever tool has packed it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from adapters_registry.content.adapter_files import (
    ADAPTER_FILES,
    CONFIG_FILE,
    signature_names,
)
from adapters_registry.content.stopping import check_stop
from adapters_registry.errors import SourceRefused
from adapters_registry.sources.access import Access
from adapters_registry.sources.oci.attachments import attached_signatures
from adapters_registry.sources.oci.client import INDEXES, OciClient
from adapters_registry.sources.oci.credentials import read_credentials
from adapters_registry.sources.oci.layers import (
    Layer,
    UnpackBudget,
    folder_of,
    layers_of,
    members_of,
)
from adapters_registry.sources.oci.reference import DIGEST, Reference
from adapters_registry.sources.source import MAX_FOLDERS, Source, check_size, missing_file

_KINDS = {
    "application/vnd.cncf.model.": "ModelPack",
    "application/vnd.cnai.model.": "ModelPack",
    "application/vnd.kitops.modelkit.": "ModelKit",
    "application/vnd.docker.ai.model.": "Docker model",
}
_UNPACKED_FACTOR = 2
"""How many times an adapter's largest size all archives of an artefact may have together."""
_CHUNK_BYTES = 1 << 20


def find_in_registry(source: str, access: Access) -> Source:
    """Find the adapter of an artefact, pinned to the digest that its tag means now.

    Only its manifest is read. Its archives are read when the files are staged.

    Raises:
        SourceRefused: the registry may not be read, there is no such artefact, or it has no
            adapter.
        StoreUnavailable: the registry does not answer.
    """
    reference = Reference.parse(source)
    with _client(reference, access) as client:
        manifest, named = client.manifest(reference.selector)
        digest = named
        if manifest.get("mediaType") in INDEXES:
            # The digest of the one manifest: what is pinned is what the files came from.
            manifest, digest = client.manifest(_only_manifest(manifest))
    layers = layers_of(manifest)
    files, archives = _chosen(layers)
    check_size(sum(layer.size_bytes for layer in (*files.values(), *archives)), access.max_bytes)

    def stage(staged: Path) -> None:
        with _client(reference, access) as client:
            staging = _Staging(client, access, staged)
            for name, layer in files.items():
                staging.add_file(name, layer)
            for layer in archives:
                staging.add_archive(layer)
            if archives:
                staging.choose_folder(files)
            for signature in attached_signatures(client, dict.fromkeys((digest, named))):
                staging.add_signature(signature)

    known_bytes = sum(layer.size_bytes for layer in files.values())
    details = {"artifact": {"reference": source, "manifest": digest, "kind": _kind_of(manifest)}}
    return Source(reference.pinned(digest), known_bytes, stage, details=details)


@contextmanager
def _client(reference: Reference, access: Access) -> Iterator[OciClient]:
    base_url = reference.base_url(access.oci_registries)
    credentials = read_credentials(access.oci_auth_file, reference.registry)
    with OciClient(base_url, reference, credentials) as client:
        yield client


def _only_manifest(index: dict[str, Any]) -> str:
    """Return the digest of an index's one manifest. Attestations, which have no platform, are none.

    Raises:
        SourceRefused: there are several, or none.
    """
    listed = index.get("manifests")
    digests = []
    for entry in listed if isinstance(listed, list) else []:
        if not isinstance(entry, dict):
            continue
        platform = entry.get("platform")
        is_attestation = isinstance(platform, dict) and platform.get("os") == "unknown"
        digest = entry.get("digest")
        if not is_attestation and isinstance(digest, str) and DIGEST.fullmatch(digest):
            digests.append(digest)
    if len(digests) != 1:
        raise SourceRefused(
            f"the artefact is an index of {len(digests)} manifests: name one by its digest"
        )
    return digests[0]


def _kind_of(manifest: dict[str, Any]) -> str:
    config = manifest.get("config")
    types = [manifest.get("artifactType"), config.get("mediaType") if config else None]
    for kind in types:
        for prefix, name in _KINDS.items():
            if isinstance(kind, str) and kind.startswith(prefix):
                return name
    return "files"


def _chosen(layers: Sequence[Layer]) -> tuple[dict[str, Layer], list[Layer]]:
    """Return the layers that are files of the adapter, by name, and the archives to look into.

    Where the two files are layers of their own, no archive is read: the companions are layers, too.
    """
    named = [layer for layer in layers if layer.file_name is not None]
    folders: dict[str, dict[str, Layer]] = {}
    for layer in named:
        folders.setdefault(layer.folder, {})[str(layer.file_name)] = layer
    complete = [folder for folder, found in folders.items() if set(ADAPTER_FILES) <= set(found)]
    if complete:
        return folders[_only_folder(complete)], []
    archives = [layer for layer in layers if layer.is_archive]
    if not archives:
        found = {name for files in folders.values() for name in files}
        raise missing_file(next(name for name in ADAPTER_FILES if name not in found))
    if len(folders) > 1:
        raise SourceRefused("the artefact has an adapter's files in several folders: pack one")
    return next(iter(folders.values()), {}), archives


def _only_folder(folders: Sequence[str]) -> str:
    if len(folders) > 1:
        shown = ", ".join(repr(folder or ".") for folder in sorted(folders)[:MAX_FOLDERS])
        raise SourceRefused(
            f"the artefact has {len(folders)} adapters, in {shown}: pack each alone"
        )
    return folders[0]


class _Staging:
    """Writes the files of one adapter from an artefact's layers, within the bounds of `access`."""

    def __init__(self, client: OciClient, access: Access, directory: Path) -> None:
        self._client, self._access, self._directory = client, access, directory
        self._written_bytes = 0
        self._budget = UnpackBudget(_UNPACKED_FACTOR * access.max_bytes)
        self._folders: dict[str, list[str]] = {}
        """The names of the files that came from archives, by their folders there."""

    def add_file(self, name: str, layer: Layer) -> None:
        """Write a layer that is a file."""
        self._reserve(layer.size_bytes)
        with (self._directory / name).open("xb") as copy:
            for part in self._client.blob(layer.digest, layer.size_bytes):
                copy.write(part)

    def add_archive(self, layer: Layer) -> None:
        """Write the adapter's files of an archive, each folder's by themselves."""
        parts = self._client.blob(layer.digest, layer.size_bytes)
        for member in members_of(layer, parts, self._budget):
            self._reserve(member.size_bytes)
            folder = folder_of(member.path)
            names = self._folders.setdefault(folder, [])
            target = self._target(folder, member.name)
            if target.exists():
                raise SourceRefused(f"the artefact has {member.path} more than once")
            names.append(member.name)
            with target.open("xb") as copy:
                _copy(member.file, copy)

    def add_signature(self, signature: bytes) -> None:
        """Write a signature that is attached to the artefact, beside those that are there."""
        self._reserve(len(signature))
        free = next(name for name in signature_names() if not (self._directory / name).exists())
        (self._directory / free).write_bytes(signature)

    def choose_folder(self, own: Collection[str]) -> None:
        """Move the files of the folder that has an adapter to the directory itself.

        `own`: the files that are there already, because they are layers of their own.

        Raises:
            SourceRefused: no folder completes the adapter, or several do.
        """
        needed = set(ADAPTER_FILES) - set(own)
        complete = [folder for folder, names in self._folders.items() if needed <= set(names)]
        if not complete:
            found = {name for names in self._folders.values() for name in names}
            raise missing_file(next((n for n in ADAPTER_FILES if n not in found), CONFIG_FILE))
        folder = _only_folder(complete)
        for name in set(self._folders[folder]) - set(own):
            self._target(folder, name).rename(self._directory / name)

    def _target(self, folder: str, name: str) -> Path:
        """Return where a file of an archive is written. No part of the path is the archive's."""
        place = self._directory / f"folder{list(self._folders).index(folder)}"
        place.mkdir(exist_ok=True)
        return place / name

    def _reserve(self, size_bytes: int) -> None:
        self._written_bytes += size_bytes
        check_size(self._written_bytes, self._access.max_bytes)
        self._access.grow(self._written_bytes)


def _copy(source: IO[bytes], target: IO[bytes]) -> None:
    while part := source.read(_CHUNK_BYTES):
        check_stop()
        target.write(part)
