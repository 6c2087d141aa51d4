"""The commands `loraplex registry`, which work on a data folder or a database directly."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from server.cli.commands import Commands
from server.cli.console import FAILED, fail
from server.cli.tables import print_table
from server.settings import SettingsError, load_settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from adapters_registry.content.store import ContentStore

app = Commands(
    help="Maintain a server's files and records. Stop the server before gc and verify.",
    no_args_is_help=True,
)

DataDirFlag = Annotated[
    Path | None, typer.Option(help="The server's data folder. LORAPLEX_DATA_DIR")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command(epilog="Example: loraplex registry gc --dry-run")
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the files.")] = False,
    origin: Annotated[
        bool,
        typer.Option("--origin", help="Also remove files at the origin, which all replicas share."),
    ] = False,
    data_dir: DataDirFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Remove files that no version needs, as those of retired, deleted and rejected versions."""
    from adapters_registry.garbage import collect_garbage, collect_origin_garbage
    from adapters_registry.records.change import Change

    with _opened(data_dir) as (session, content):
        if origin and content.origin is None:
            raise SettingsError("LORAPLEX_ORIGIN isn't set: there is no origin to collect at")
        there = content.origin if origin else None
        at_origin = there.sizes() if there else {}
        with session.begin():
            change = Change.begin(session)
            _require_versions(session)
            garbage = {"disk": collect_garbage(change, content, dry_run=dry_run)}
            if there:
                garbage["origin"] = collect_origin_garbage(
                    change, there, at_origin, dry_run=dry_run
                )
    rows = [(where, *found) for where, sizes in garbage.items() for found in sizes.items()]
    total_bytes = sum(size_bytes for _, _, size_bytes in rows)
    if as_json:
        keys = ("where", "digest", "size_bytes")
        listed = [dict(zip(keys, row, strict=True)) for row in rows]
        print(json.dumps({"dry_run": dry_run, "garbage": listed, "size_bytes": total_bytes}))
        return
    table = Table("where", "digest", "size")
    for where, digest, size_bytes in rows:
        table.add_row(where, digest[:12], _size(size_bytes))
    print_table(table)
    print(f"{_size(total_bytes)} {'would be' if dry_run else 'were'} removed")


@app.command(epilog="Example: loraplex registry verify --data-dir /srv/loraplex")
def verify(data_dir: DataDirFlag = None, as_json: JsonFlag = False) -> None:
    """Read all files that versions need and compare them with their digests.

    The exit code is 1 if a file is damaged, missing, or not at the origin.
    """
    from adapters_registry import verification

    with _opened(data_dir) as (session, content):
        needed = verification.needed_content(session)
        found = verification.verify(content, needed)
        console = Console(stderr=True)
        findings = list(track(found, "verifying", len(needed), console=console, transient=True))
    wrong = [finding for finding in findings if finding.state not in verification.FINE]
    if as_json:
        rows = [{"digest": f.digest, "state": f.state, "versions": f.versions} for f in findings]
        print(json.dumps({"sound": not wrong, "content": rows}))
    else:
        table = Table("digest", "state", "versions")
        for finding in wrong:
            table.add_row(finding.digest[:12], finding.state, ", ".join(finding.versions))
        if wrong:
            print_table(table)
        print(f"{len(findings)} checked, {len(wrong)} not as they should be")
    if wrong:
        raise typer.Exit(FAILED)


@app.command(epilog="Example: loraplex registry prune --before 2026-01-01 --export 2025.jsonl")
def prune(
    before: Annotated[
        datetime, typer.Option(help="Remove entries from before this day or time, in local time.")
    ],
    export_to: Annotated[
        Path | None,
        typer.Option("--export", help="First write them to this new file, as JSON lines."),
    ] = None,
    data_dir: DataDirFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Remove old entries of the audit trail and old usage from the database.

    Servers may keep running.
    """
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.orm import sessionmaker

    from adapters_registry import retention
    from adapters_registry.records.database import open_database

    moment = before.astimezone(UTC)
    try:
        engine = open_database(load_settings(data_dir=data_dir).records_url)
        transactions = sessionmaker(engine).begin
        if export_to:
            with transactions() as session, export_to.open("x") as file:
                file.writelines(json.dumps(row) + "\n" for row in retention.export(session, moment))
                file.flush()
                os.fsync(file.fileno())
        pruned = retention.prune(transactions, moment)
        engine.dispose()
    except (ImportError, SQLAlchemyError) as error:
        fail(f"LORAPLEX_DATABASE_URL: {str(error).splitlines()[0]}")
    except OSError as error:
        fail(f"--export {export_to}: {error.strerror}; nothing was removed")
    if as_json:
        print(json.dumps(pruned._asdict()))
    else:
        print(f"{pruned.audit} audit entries and {pruned.usage} rows of usage were removed")


@app.command(
    epilog="Example: LORAPLEX_DATABASE_URL=postgresql://db/loraplex loraplex registry migrate"
)
def migrate() -> None:
    """Bring the schema of the database up to date, as every server does at its start."""
    from sqlalchemy.exc import SQLAlchemyError

    from adapters_registry.records.database import open_database

    try:
        open_database(load_settings().records_url).dispose()
    except (ImportError, SQLAlchemyError) as error:
        fail(f"LORAPLEX_DATABASE_URL: {str(error).splitlines()[0]}")


@contextmanager
def _opened(data_dir: Path | None) -> Iterator[tuple[Session, ContentStore]]:
    """Open the records and files of a data folder that no server uses. Errors end the command."""
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.orm import Session

    from adapters_registry.errors import RegistryError
    from adapters_registry.records.database import open_database
    from server.process.data_dir import own_data_dir
    from server.process.startup import open_content

    settings = load_settings(data_dir=data_dir)
    if not (settings.data_dir / "content").is_dir():
        raise SettingsError(f"LORAPLEX_DATA_DIR (--data-dir): no registry in {settings.data_dir}")
    with own_data_dir(settings):
        content = open_content(settings)
        content.clear_staging()
        try:
            engine = open_database(settings.records_url)
            with Session(engine) as session:
                yield session, content
            engine.dispose()
        except (ImportError, SQLAlchemyError) as error:
            fail(f"LORAPLEX_DATABASE_URL: {str(error).splitlines()[0]}")
        except RegistryError as error:
            fail(str(error))


def _require_versions(session: Session) -> None:
    """Check that the database has a version. In a wrong one, all files would be garbage."""
    from sqlalchemy import select

    from adapters_registry.records.tables import Version

    if session.scalar(select(Version.id).limit(1)) is None:
        fail("the registry has no version at all: is LORAPLEX_DATABASE_URL the server's?")


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
