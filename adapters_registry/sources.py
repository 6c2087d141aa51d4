"""Where an adapter's files come from: an upload, or a local path below a configured root."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

from adapters_registry.content import ADAPTER_FILES, CONFIG_FILE, WEIGHTS_FILE
from adapters_registry.errors import SourceRefused


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
    path = Path(source).resolve()
    if not any(path.is_relative_to(root.resolve()) for root in roots):
        raise SourceRefused(f"{source} isn't below LORAPLEX_LOCAL_ROOTS")
    if not path.is_dir():
        raise SourceRefused(f"{source} is no directory on the server")
    if sum(_regular_file_bytes(path / name) for name in ADAPTER_FILES) > max_bytes:
        raise SourceRefused(f"{source} holds more than {max_bytes >> 20} MiB")
    for name in ADAPTER_FILES:
        shutil.copyfile(path / name, staged / name, follow_symlinks=False)


def _regular_file_bytes(file: Path) -> int:
    try:
        status = file.lstat()
    except FileNotFoundError:
        raise SourceRefused(missing_file(file.name)) from None
    if not stat.S_ISREG(status.st_mode):
        raise SourceRefused(f"{file.name} is a link or no regular file: copy the file itself")
    return status.st_size


def missing_file(name: str) -> str:
    """The sentence for an adapter that lacks one of its two files."""
    return f"{name} is missing: an adapter is {CONFIG_FILE} and {WEIGHTS_FILE}, as PEFT saves them"
