"""A source that was found, of any kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapters_registry.content.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from adapters_registry.errors import SourceRefused

_MIB = 1 << 20


@dataclass(frozen=True)
class Source:
    """An adapter's files, whose size is known, and which are not read yet."""

    name: str
    """The source's name in the version's record. It is exact if possible (a hub's commit)."""
    size_bytes: int
    stage: Callable[[Path], None]
    """Writes the files, at most `size_bytes`, to a directory. Raises `SourceRefused` or
    `StoreUnavailable` if it cannot."""

    def limited(self, max_bytes: int) -> Source:
        """Return the source itself. Raises `SourceRefused` if it is larger than `max_bytes`."""
        check_size(self.size_bytes, max_bytes)
        return self


def check_size(size_bytes: int, max_bytes: int) -> None:
    """Raise `SourceRefused` if an adapter's files are over the limit."""
    if size_bytes > max_bytes:
        raise SourceRefused(
            f"the files have {size_bytes / _MIB:.1f} MiB, over the limit of "
            f"{max_bytes / _MIB:.0f} MiB (LORAPLEX_MAX_ADAPTER_MIB)"
        )


class MissingFile(SourceRefused):
    """A source lacks a file."""


def missing_file(name: str) -> MissingFile:
    """Return the error for an adapter that lacks one of its two files."""
    return MissingFile(
        f"{name} is missing: an adapter is {CONFIG_FILE} and {WEIGHTS_FILE}, as PEFT saves them"
    )
