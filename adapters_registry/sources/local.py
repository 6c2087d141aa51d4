"""A directory on the server, below a configured root."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from adapters_registry.content.adapter_files import (
    ADAPTER_FILES,
    SIGNATURE_FILE,
    companions_in,
    left_out,
)
from adapters_registry.content.stopping import check_stop
from adapters_registry.errors import SourceRefused
from adapters_registry.sources.source import Source, missing_in

_CHUNK_BYTES = 1 << 20


def find_local(source: str, roots: tuple[Path, ...]) -> Source:
    """Find the adapter directory at a path below one of `roots`.

    Its files may be links, as in the hub's cache, if they lead to files below the same root.

    Raises:
        SourceRefused: the path is outside the roots, does not exist, or one of the two files is
            missing, outside the root or not a regular file.
    """
    if not roots:
        raise SourceRefused(
            "path sources are off: upload the files, or set LORAPLEX_LOCAL_ROOTS on the server"
        )
    try:
        path = Path(source).resolve()
        around = [root for each in roots if path.is_relative_to(root := each.resolve())]
        if not around:
            raise SourceRefused(f"{source} is not below LORAPLEX_LOCAL_ROOTS")
        if not path.is_dir():
            raise SourceRefused(f"{source} is not a directory on the server")
        signature = [SIGNATURE_FILE] if (path / SIGNATURE_FILE).is_file() else []
        names = (*ADAPTER_FILES, *companions_in(path), *signature)
        sizes = {name: _size_of(path / name, around) for name in names}
        others = left_out(file.name for file in path.iterdir() if file.is_file())
    except (OSError, ValueError) as error:
        raise SourceRefused(f"the source cannot be read: {error}") from error

    def stage(staged: Path) -> None:
        for name, size_bytes in sizes.items():
            with _open_below(around, path / name) as file, (staged / name).open("wb") as copy:
                while size_bytes and (chunk := file.read(min(size_bytes, _CHUNK_BYTES))):
                    check_stop()
                    size_bytes -= copy.write(chunk)
                if size_bytes or file.read(1):
                    raise SourceRefused(f"{name} changed while it was read: try again")

    return Source(source, sum(sizes.values()), stage, others)


def _size_of(file: Path, roots: Sequence[Path]) -> int:
    with _open_below(roots, file) as handle:
        return os.fstat(handle.fileno()).st_size


def _open_below(roots: Sequence[Path], file: Path) -> BinaryIO:
    """Open a regular file below one of the roots for reading; links are followed.

    What was found is held before it is looked at, so nothing can take its place in between.
    Nothing is opened that could wait, as a pipe does.
    """
    try:
        found = os.open(file, os.O_PATH)
    except FileNotFoundError:
        raise missing_in(file.parent, file.name) from None
    try:
        held = f"/proc/self/fd/{found}"
        place = Path(os.readlink(held))
        if not any(place.is_relative_to(root) for root in roots):
            raise SourceRefused(
                f"{file.name} is a link that leaves LORAPLEX_LOCAL_ROOTS: copy the file itself"
            )
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise SourceRefused(f"{file.name} is not a regular file")
        return os.fdopen(os.open(held, os.O_RDONLY), "rb")
    finally:
        os.close(found)
