"""A directory on the server, below a configured root."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from adapters_registry.content.adapter_files import ADAPTER_FILES, companions_in
from adapters_registry.content.stopping import check_stop
from adapters_registry.errors import SourceRefused
from adapters_registry.sources.source import Source, missing_file

_CHUNK_BYTES = 1 << 20


def find_local(source: str, roots: tuple[Path, ...]) -> Source:
    """Find the adapter directory at a path below one of `roots`.

    Raises:
        SourceRefused: the path is outside the roots, does not exist, or one of the two files is
            missing, a link or not a regular file.
    """
    if not roots:
        raise SourceRefused(
            "path sources are off: upload the files, or set LORAPLEX_LOCAL_ROOTS on the server"
        )
    try:
        path = Path(source).resolve()
        if not any(path.is_relative_to(root.resolve()) for root in roots):
            raise SourceRefused(f"{source} is not below LORAPLEX_LOCAL_ROOTS")
        if not path.is_dir():
            raise SourceRefused(f"{source} is not a directory on the server")
        names = (*ADAPTER_FILES, *companions_in(path))
        sizes = {name: size_of(path / name) for name in names}
    except (OSError, ValueError) as error:
        raise SourceRefused(f"the source cannot be read: {error}") from error

    def stage(staged: Path) -> None:
        for name, size_bytes in sizes.items():
            with _open_regular(path / name) as file, (staged / name).open("wb") as copy:
                while size_bytes and (chunk := file.read(min(size_bytes, _CHUNK_BYTES))):
                    check_stop()
                    size_bytes -= copy.write(chunk)
                if size_bytes or file.read(1):
                    raise SourceRefused(f"{name} changed while it was read: try again")

    return Source(source, sum(sizes.values()), stage)


def size_of(file: Path) -> int:
    with _open_regular(file) as handle:
        return os.fstat(handle.fileno()).st_size


def _open_regular(file: Path) -> BinaryIO:
    """Open a file for reading without following a link or waiting for a pipe."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise missing_file(file.name) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise SourceRefused(f"{file.name} is a link: copy the file itself") from None
        raise
    handle = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        handle.close()
        raise SourceRefused(f"{file.name} is not a regular file")
    return handle
