"""The layers of an artefact: plain files, and archives that are read with bounds."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any, cast

from adapters_registry.content.adapter_files import SOURCE_FILES, WEIGHTS_FILE
from adapters_registry.errors import SourceRefused
from adapters_registry.sources.oci.reference import DIGEST

_TITLE = "org.opencontainers.image.title"
_PATH_ANNOTATIONS = ("org.cncf.model.filepath", "org.cnai.model.filepath", _TITLE)
"""The name of a layer's file: in ModelPack and Docker's models, its older name, and ORAS'."""
_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_DOCKER_SAFETENSORS = "application/vnd.docker.ai.safetensors"
"""Docker's older form: weights without a name."""
_MAX_LAYERS = 1000
_MAX_MEMBERS = 10_000
_MAX_HEADER_BYTES = 64 << 10
"""Of a member's extended header: long names stand there. `tarfile` reads it into memory."""
_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


@dataclass(frozen=True)
class Layer:
    """A layer as the manifest describes it."""

    digest: str
    size_bytes: int
    media_type: str
    path: str
    """The path of its file; empty if the manifest doesn't say."""
    is_of_oras: bool = False
    """Whether ORAS has named it. ORAS gives plain files a media type of archives, too."""

    @property
    def is_archive(self) -> bool:
        """Return whether it is a tar archive, by its media type."""
        if self.is_of_oras and self.media_type == _OCI_LAYER and self._name in SOURCE_FILES:
            return False
        kind, _, compression = self.media_type.partition("+")
        return (
            kind.endswith((".tar", "/tar", ".tar.gzip", ".tar.zstd"))
            or compression == "tar"
            or compression in ("gzip", "zstd")
        )

    @property
    def is_gzip(self) -> bool:
        """Return whether it is compressed with gzip."""
        return self.media_type.endswith("gzip")

    @property
    def is_other_compression(self) -> bool:
        """Return whether it is compressed in a way that isn't read here."""
        return self.media_type.endswith("zstd")

    @property
    def file_name(self) -> str | None:
        """Return which of an adapter's files the layer is, or None."""
        name = self._name
        if not self.path and self.media_type == _DOCKER_SAFETENSORS:
            name = WEIGHTS_FILE
        return name if not self.is_archive and name in SOURCE_FILES else None

    @property
    def _name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def folder(self) -> str:
        """Return the folder of its file."""
        return folder_of(self.path)


def folder_of(path: str) -> str:
    """Return the folder of a path; empty is the artefact's own."""
    parent = str(PurePosixPath(path.lstrip("./")).parent)
    return "" if parent == "." else parent


def layers_of(manifest: dict[str, Any]) -> list[Layer]:
    """Return the layers that a manifest lists.

    Raises:
        SourceRefused: it lists none, too many, or one that is not described as it should be.
    """
    listed = manifest.get("layers")
    if not isinstance(listed, list) or not 1 <= len(listed) <= _MAX_LAYERS:
        raise SourceRefused(f"the artefact has no layers, or over {_MAX_LAYERS}")
    return [_layer(entry) for entry in listed]


def _layer(entry: Any) -> Layer:
    try:
        digest, size_bytes, media_type = entry["digest"], entry["size"], entry["mediaType"]
        annotations = entry.get("annotations") or {}
        key = next((key for key in _PATH_ANNOTATIONS if key in annotations), "")
        path = annotations.get(key, "")
        is_right = (
            isinstance(media_type, str)
            and isinstance(path, str)
            and isinstance(size_bytes, int)
            and size_bytes >= 0
            and DIGEST.fullmatch(digest) is not None
        )
    except (KeyError, TypeError, AttributeError):
        is_right = False
    if not is_right:
        raise SourceRefused("the manifest describes a layer without digest (sha256), size or type")
    return Layer(digest, size_bytes, media_type, path, key == _TITLE)


class _Parts(io.RawIOBase):
    """A blob's parts as a file that can be read once."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts, self._rest = parts, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            try:
                self._rest = next(self._parts)
            except StopIteration:
                return 0
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


@dataclass
class UnpackBudget:
    """How many bytes all archives of an artefact may still have when they are unpacked."""

    left_bytes: int


class _Bounded:
    """A file that is read within a budget: archives can grow when they are unpacked."""

    def __init__(self, file: IO[bytes], budget: UnpackBudget) -> None:
        self._file, self._budget = file, budget

    def read(self, size: int) -> bytes:
        part = self._file.read(size)
        self._budget.left_bytes -= len(part)
        if self._budget.left_bytes < 0:
            raise SourceRefused(
                "an archive of the artefact is too large when it is unpacked: pack the adapter's "
                "files alone"
            )
        return part


class _Member(tarfile.TarInfo):
    """A member of an archive, whose extended headers are bounded before they are read."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _HEADERS and not 0 <= member.size <= _MAX_HEADER_BYTES:
            raise SourceRefused("an archive of the artefact has a header that is too large")
        if member.type == tarfile.GNUTYPE_SPARSE:
            raise SourceRefused("an archive of the artefact has a sparse file: pack it without")
        return member


@dataclass(frozen=True)
class Member:
    """One of an adapter's files in an archive. Read its parts before asking for the next member."""

    path: str
    size_bytes: int
    file: IO[bytes]

    @property
    def name(self) -> str:
        """Return which of an adapter's files it is."""
        return PurePosixPath(self.path).name


def members_of(layer: Layer, parts: Iterator[bytes], budget: UnpackBudget) -> Iterator[Member]:
    """Yield those members of an archive that may be an adapter's files. Nothing is unpacked.

    Links and other special members are passed over.

    Raises:
        SourceRefused: the archive cannot be read, or exceeds a bound.
    """
    if layer.is_other_compression:
        raise SourceRefused(
            "the artefact's layers are compressed with zstd, which is not supported: pack them "
            "with gzip, or without compression"
        )
    raw = cast(IO[bytes], io.BufferedReader(_Parts(parts)))
    unpacked = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if layer.is_gzip else raw
    bounded = cast(IO[bytes], _Bounded(unpacked, budget))
    try:
        with tarfile.open(fileobj=bounded, mode="r|", tarinfo=_Member) as archive:
            for number, member in enumerate(archive):
                if number == _MAX_MEMBERS:
                    raise SourceRefused(f"an archive of the artefact has over {_MAX_MEMBERS} files")
                is_plain = member.isreg() and not member.issparse() and member.size >= 0
                if is_plain and PurePosixPath(member.name).name in SOURCE_FILES:
                    file = archive.extractfile(member)
                    assert file is not None, "it is a regular file"
                    yield Member(member.name, member.size, file)
        while raw.read(1 << 16):  # what stands behind the archive counts for the digest
            pass
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SourceRefused(
            f"an archive of the artefact cannot be read ({type(error).__name__})"
        ) from error
