"""Checks what the server keeps: the data folder, the database, the origin, files of settings."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from adapters_registry.content.origin import Origin
from adapters_registry.errors import SourceRefused, StoreUnavailable
from adapters_registry.records.database import connect, parse_url
from adapters_registry.records.migrations import Schema, schema_of
from adapters_registry.records.network_storage import network_file_system
from server.doctor.finding import Finding, ok, problem, warning
from server.process.data_dir import is_in_use
from server.settings import Settings, variable_of

_GIB = 1 << 30
LEAST_FREE_BYTES = _GIB
"""With less, the disk is full after a few adapters, or before the bundled base is prepared."""
LITTLE_FREE_BYTES = 10 * _GIB
SCHEMAS = {
    Schema.EMPTY: "it is empty, and the first start makes its tables",
    Schema.OLDER: "its schema is of an earlier release, and the next start brings it up to date",
    Schema.CURRENT: "its schema is up to date",
    Schema.NEWER: "its schema is of a later release, and this release works with it",
}


def free_bytes_at(folder: Path) -> int:
    """Return the bytes that are free on a folder's disk."""
    return shutil.disk_usage(folder).free


def check_data_folder(
    settings: Settings, free_bytes: Callable[[Path], int] = free_bytes_at
) -> Iterator[Finding]:
    """Yield whether the data folder can be written, and how much room it has."""
    folder = settings.data_dir.absolute()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield problem(
            "data folder",
            f"{there} {'cannot be written' if there.is_dir() else 'is not a folder'}",
            "choose another folder with LORAPLEX_DATA_DIR, or let this user write there",
        )
        return
    used = ", which a running server uses" if is_in_use(settings) else ""
    yield ok("data folder", f"{folder}{used}")
    yield _disk(settings, there, free_bytes(there))


def _disk(settings: Settings, folder: Path, free_bytes: int) -> Finding:
    text, remedy = f"{free_bytes / _GIB:.1f} GiB are free at {folder}", "free disk space there"
    if free_bytes < LEAST_FREE_BYTES:
        return problem("disk", text, remedy)
    budget = settings.disk_budget_bytes
    if budget is not None and budget > free_bytes + _kept_bytes(settings):
        more = f"{text}, and LORAPLEX_DISK_BUDGET_GIB lets adapters take {budget / _GIB:g}"
        return warning("disk", more, f"{remedy}, or lower LORAPLEX_DISK_BUDGET_GIB")
    if budget is None and free_bytes < LITTLE_FREE_BYTES:
        return warning("disk", text, f"{remedy}, or bound adapters with LORAPLEX_DISK_BUDGET_GIB")
    return ok("disk", text)


def _kept_bytes(settings: Settings) -> int:
    """Return the bytes of adapters that count against the budget already."""
    files = (settings.data_dir / "content" / "sha256").rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def check_database(settings: Settings) -> Iterator[Finding]:
    """Yield whether the database answers and has a schema that this release knows."""
    url = parse_url(settings.records_url)
    if url.get_backend_name() == "sqlite":
        file = Path(url.database or "")
        if kind := network_file_system(file):
            yield warning(
                "database",
                f"{file} is on network storage ({kind}), where SQLite is slower",
                "put LORAPLEX_DATA_DIR on a local disk, or use PostgreSQL (LORAPLEX_DATABASE_URL)",
            )
        if not file.is_file():
            yield ok("database", f"the first start makes {file}")
            return
    try:
        engine = connect(settings.records_url)
        schema = schema_of(engine)
        engine.dispose()
    except (SQLAlchemyError, ImportError) as error:
        yield problem(
            "database",
            f"{url.render_as_string()}: {str(error).splitlines()[0]}",
            "start the database, or correct LORAPLEX_DATABASE_URL",
        )
        return
    if schema is Schema.UNKNOWN:
        yield problem(
            "database",
            f"{url.render_as_string()} has the schema of a later release",
            "install that release, or restore a backup from before it",
        )
    else:
        yield ok("database", f"{url.render_as_string()} answers; {SCHEMAS[schema]}")


def check_origin(settings: Settings) -> Iterator[Finding]:
    """Yield whether the bucket that keeps all adapters' files answers."""
    if settings.origin is None:
        return
    try:
        Origin(settings.origin).size_of("0" * 64)
    except (SourceRefused, StoreUnavailable) as error:
        yield problem(
            "origin", str(error), "check LORAPLEX_ORIGIN, and the bucket's AWS_* variables"
        )
    else:
        yield ok("origin", f"{settings.origin} answers")


def check_files(settings: Settings) -> Iterator[Finding]:
    """Yield settings that name a file or folder which isn't there or can't be read."""
    named = {
        name: path
        for name in ("admin_key_file", "console_secret_file", "gpu_lora_tiles")
        if (path := getattr(settings, name)) is not None
    }
    for name, path in named.items():
        if not os.access(path, os.R_OK):
            yield problem("files", f"{variable_of(name)}: {path} can't be read", "correct the path")
    for root in settings.local_roots:
        if not root.is_dir():
            text = f"{variable_of('local_roots')}: {root} is no folder"
            yield warning("files", text, "correct the path, or make the folder")
