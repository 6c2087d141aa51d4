"""What every source is, once it is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapters_registry.content.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from adapters_registry.errors import SourceRefused

_MIB = 1 << 20


@dataclass(frozen=True)
class Source:
    """An adapter's two files, found and measured, not yet read."""

    name: str
    """What the version's record calls it: exact where the source can say so (a hub's commit)."""
    size_bytes: int
    stage: Callable[[Path], None]
    """Puts the two files, and not more than `size_bytes`, into a directory; raises
    `SourceRefused` or `StoreUnavailable` where that can't be."""

    def limited(self, max_bytes: int) -> Source:
        """The source itself, or `SourceRefused` if it is larger."""
        check_size(self.size_bytes, max_bytes)
        return self


def check_size(size_bytes: int, max_bytes: int) -> None:
    """Raise `SourceRefused` if an adapter's files are over the limit."""
    if size_bytes > max_bytes:
        raise SourceRefused(
            f"the files have {size_bytes / _MIB:.1f} MiB, over the limit of "
            f"{max_bytes / _MIB:.0f} MiB (LORAPLEX_MAX_ADAPTER_MIB)"
        )


def missing_file(name: str) -> SourceRefused:
    """An adapter that lacks one of its two files."""
    return SourceRefused(
        f"{name} is missing: an adapter is {CONFIG_FILE} and {WEIGHTS_FILE}, as PEFT saves them"
    )
