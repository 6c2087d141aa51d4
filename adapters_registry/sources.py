"""Where an adapter's files come from: an upload, or a local path below a configured root."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from adapters_registry.content import ADAPTER_FILES, CONFIG_FILE, WEIGHTS_FILE
from adapters_registry.errors import SourceRefused

_CHUNK_BYTES = 1 << 20


def stage_local_path(source: str, roots: tuple[Path, ...], staged: Path, max_bytes: int) -> None:
    """Copy an adapter directory below one of `roots` into `staged`.

    Raises:
        SourceRefused: the path lies outside the roots, isn't there, holds links or odd files, or
            more than `max_bytes`.
    """
    if "://" in source:
        raise SourceRefused(f"source {source!r} isn't supported: give a path, or upload the files")
    if not roots:
        raise SourceRefused(
            "path sources are off: upload the files, or set LORAPLEX_LOCAL_ROOTS on the server"
        )
    try:
        path = Path(source).resolve()
        if not any(path.is_relative_to(root.resolve()) for root in roots):
            raise SourceRefused(f"{source} isn't below LORAPLEX_LOCAL_ROOTS")
        if not path.is_dir():
            raise SourceRefused(f"{source} is no directory on the server")
        for name in ADAPTER_FILES:
            max_bytes -= _copy_regular_file(path / name, staged / name, max_bytes)
    except (OSError, ValueError) as error:
        raise SourceRefused(f"the source can't be read: {error}") from error


def _copy_regular_file(source: Path, target: Path, max_bytes: int) -> int:
    """Copy without following a link, at most `max_bytes`; return the number of bytes."""
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise SourceRefused(missing_file(source.name)) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise SourceRefused(f"{source.name} is a link: copy the file itself") from None
        raise
    with os.fdopen(descriptor, "rb") as file, target.open("wb") as copy:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise SourceRefused(f"{source.name} is no regular file")
        num_bytes = 0
        while chunk := file.read(_CHUNK_BYTES):
            num_bytes += len(chunk)
            if num_bytes > max_bytes:
                raise SourceRefused("the files are over the limit (LORAPLEX_MAX_ADAPTER_MIB)")
            copy.write(chunk)
    return num_bytes


def missing_file(name: str) -> str:
    """The sentence for an adapter that lacks one of its two files."""
    return f"{name} is missing: an adapter is {CONFIG_FILE} and {WEIGHTS_FILE}, as PEFT saves them"
