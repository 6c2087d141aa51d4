"""What the sources of adapters may be read from, as the server's settings say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def _grow_freely(_size_bytes: int) -> None:
    return None


@dataclass(frozen=True)
class Access:
    """Which places a server may read adapters from, and how large they may be."""

    local_roots: tuple[Path, ...]
    max_bytes: int
    oci_registries: tuple[str, ...] = ()
    """Registries as `host[:port]`, with `http://` in front if they are asked without TLS."""
    oci_auth_file: Path | None = None
    """Credentials for registries, in the form of Docker's `config.json`."""
    grow: Callable[[int], None] = _grow_freely
    """Called while files are written whose size was not known before: with their size in total so
    far, before the next file is written. Raises what a full quota or disk raises."""
