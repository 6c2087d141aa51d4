"""The data folder: it is locked to one process, which has an id of its own."""

from __future__ import annotations

import fcntl
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from server.settings import Settings, SettingsError


@contextmanager
def own_data_dir(settings: Settings) -> Iterator[None]:
    """Create the data folder and lock it, because a second process would delete running uploads.

    Raises:
        SettingsError: it cannot be written, or another process uses it.
    """
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        lock = (settings.data_dir / "lock").open("w")
    except OSError as error:
        raise SettingsError(
            f"LORAPLEX_DATA_DIR (--data-dir): cannot use {settings.data_dir}: {error.strerror}"
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


def is_in_use(settings: Settings) -> bool:
    """Return whether a running server has locked the data folder. Changes nothing."""
    try:
        lock = (settings.data_dir / "lock").open()
    except OSError:
        return False
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


class ServerIds(NamedTuple):
    """By which id a server leases what it works on, and by which one it did before it restarted."""

    own: str
    before: str


def take_server_id(settings: Settings) -> ServerIds:
    """Give this life of the server an id, and keep it for the next one to inherit from.

    No two servers have the same id, also if the folder of one is a copy of the other's.

    Raises:
        OSError: the file can be neither read nor written.
    """
    file = settings.data_dir / "server.id"
    before = file.read_text().strip()[:64] if file.is_file() else ""
    ids = ServerIds(uuid.uuid4().hex, before)
    new = file.with_suffix(".new")  # on a full disk the old one stays as it is
    new.write_text(f"{ids.own}\n")
    new.replace(file)
    return ids
