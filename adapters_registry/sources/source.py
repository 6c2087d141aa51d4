"""A source that was found, of any kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters_registry.content.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from adapters_registry.errors import SourceRefused

PICKLE_FILE = "adapter_model.bin"
"""The weights as older releases of PEFT saved them."""
CONVERT_PICKLE = (
    "a pickle can hold any code; this command, run beside it, converts it: "
    'python -c "import torch, safetensors.torch as st; st.save_file({k: v.contiguous().clone() '
    f"for k, v in torch.load('{PICKLE_FILE}', map_location='cpu', weights_only=True).items()}}, "
    f"'{WEIGHTS_FILE}')\""
)
MAX_FOLDERS = 3
"""Folders that a message names."""

_MIB = 1 << 20


@dataclass(frozen=True)
class Source:
    """An adapter's files, whose size is known, and which are not read yet."""

    name: str
    """The source's name in the version's record. It is exact if possible (a hub's commit)."""
    size_bytes: int
    stage: Callable[[Path], None]
    """Writes the files, at most `size_bytes`, to a directory. Raises `SourceRefused` or
    `StoreUnavailable` if it cannot. A source with compressed files may write more: it calls
    `Access.grow` first."""
    left_out: tuple[str, ...] = ()
    """Names of the files beside them that aren't written, as `adapter_files.left_out` chooses."""
    details: dict[str, Any] = field(default_factory=dict)
    """What the version's metadata keep of the source."""

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


def missing_file(
    name: str, *, has_pickle: bool = False, folders: Sequence[str] = ()
) -> MissingFile:
    """Return the error for an adapter that lacks one of its two files, with what to do.

    `has_pickle`: the weights are there as `PICKLE_FILE`. `folders`: where there are adapters below.
    """
    message = f"{name} is missing"
    if name == WEIGHTS_FILE and has_pickle:
        return MissingFile(f"{message}, and {PICKLE_FILE} isn't read, since {CONVERT_PICKLE}")
    if folders:
        shown = " or ".join(folders[:MAX_FOLDERS])
        more = len(folders) - MAX_FOLDERS
        return MissingFile(
            f"{message}: did you mean {shown}{f' (and {more} more)' if more > 0 else ''}?"
        )
    return MissingFile(
        f"{message}: an adapter is {CONFIG_FILE} and {WEIGHTS_FILE}, as PEFT saves them"
    )


def missing_in(directory: Path, name: str) -> MissingFile:
    """Return the error for a directory here that lacks one of an adapter's two files."""
    found = [config.parent for config in directory.glob(f"*/{CONFIG_FILE}")]
    found.sort(key=lambda folder: (len(folder.name), folder.name))  # checkpoint-500 before -1000
    return missing_file(
        name,
        has_pickle=(directory / PICKLE_FILE).is_file(),
        folders=[] if (directory / CONFIG_FILE).exists() else list(map(str, found)),
    )
