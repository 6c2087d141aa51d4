"""The data folder: one process at a time has it, and what it keeps is opened here."""

from __future__ import annotations

import fcntl
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from adapters_registry.content.origin import Origin
from adapters_registry.content.store import ContentStore
from adapters_registry.errors import SourceRefused
from server import metrics
from server.settings import Settings, SettingsError


@contextmanager
def own_data_dir(settings: Settings) -> Iterator[None]:
    """Make the data folder, and keep it to this process: another one would clear its uploads.

    Raises:
        SettingsError: it can't be written, or another process has it.
    """
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        lock = (settings.data_dir / "lock").open("w")
    except OSError as error:
        raise SettingsError(
            f"LORAPLEX_DATA_DIR (--data-dir): can't use {settings.data_dir}: {error.strerror}"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SettingsError(
                f"LORAPLEX_DATA_DIR (--data-dir): another server uses {settings.data_dir}; "
                "stop it or choose another folder"
            ) from None
        yield


def read_server_id(settings: Settings) -> str:
    """The id of the server of this data folder; it outlives restarts, and is made at the first.

    Raises:
        OSError: the file can be neither read nor written.
    """
    file = settings.data_dir / "server.id"
    if file.is_file() and (known := file.read_text().strip()):
        return known[:64]
    file.write_text(f"{(new := uuid.uuid4().hex)}\n")
    return new


def open_content(settings: Settings) -> ContentStore:
    """The folder of adapters' files, with its budget and its origin.

    Raises:
        SettingsError: the origin isn't named as it should be.
    """
    try:
        origin = Origin(settings.origin) if settings.origin else None
    except SourceRefused as error:
        raise SettingsError(f"LORAPLEX_ORIGIN (--origin): {error}") from error
    folder = settings.data_dir / "content"
    return ContentStore(
        folder,
        budget_bytes=settings.disk_budget_bytes,
        origin=origin,
        on_evict=metrics.EVICTIONS.labels("disk", "capacity").inc,
    )
