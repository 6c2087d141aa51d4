"""The servers on one database. Each says every few seconds that it runs, and what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, delete, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from adapters_registry.records.database import database_time
from adapters_registry.rollout.tables import ServerReport

REPORT_SECONDS = 5.0
AWAY_AFTER = timedelta(seconds=6 * REPORT_SECONDS)
"""A server that has not been heard of for so long has stopped, or cannot reach the database.

Nothing waits for it."""
FORGOTTEN_AFTER = timedelta(hours=1)


@dataclass(frozen=True)
class ServerFigures:
    """What a server says of itself."""

    engine: str
    """The state of its engine."""
    slots: int
    """How many it has."""
    in_slots: int = 0
    in_host_memory: int = 0
    """Versions in host memory alone, not in a slot."""
    on_disk: int = 0
    """Ready versions that are in neither, whose files are on its disk."""
    elsewhere: int = 0
    """Ready versions whose files are not on its disk."""
    disk_bytes: int = 0
    running: int = 0
    """Requests that hold a version."""
    waiting: int = 0


@dataclass(frozen=True)
class ServerRecord:
    """A server as the others know it."""

    id: str
    name: str
    """Its host and port."""
    started_at: datetime
    seen_at: datetime
    is_away: bool
    figures: ServerFigures


def report_server(
    session: Session, server_id: str, name: str, started_at: datetime, figures: ServerFigures
) -> None:
    """Say that a server runs.

    Servers that have been away for long are forgotten, and those that had this one's name sooner:
    they are what it was before a crash.
    """
    at = database_time(session)
    said: dict[str, Any] = {"name": name[:255], "started_at": started_at, "seen_at": at}
    said["figures"] = asdict(figures)
    write_report(session, server_id, said, {"warming": {}})
    was_it = and_(ServerReport.name == said["name"], ServerReport.seen_at < at - AWAY_AFTER)
    long_away = ServerReport.seen_at < at - FORGOTTEN_AFTER
    session.execute(delete(ServerReport).where(or_(was_it, long_away)))


def write_report(
    session: Session, server_id: str, said: Mapping[str, Any], at_first: Mapping[str, Any]
) -> None:
    """Write some columns of a server's row. `at_first` has others, for when there is no row yet.

    One statement does it, because two threads of a server write its row.
    """
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    new = dialect.insert(ServerReport).values(id=server_id, **at_first, **said)
    session.execute(new.on_conflict_do_update(index_elements=["id"], set_=said))


def forget_server(session: Session, server_id: str) -> None:
    """Say that a server has stopped."""
    session.execute(delete(ServerReport).where(ServerReport.id == server_id))


def read_servers(session: Session) -> list[ServerRecord]:
    """Return the servers by name, those that have said what they hold."""
    at = database_time(session)
    rows = session.scalars(select(ServerReport).order_by(ServerReport.name, ServerReport.id))
    return [
        ServerRecord(
            row.id,
            row.name,
            row.started_at,
            row.seen_at,
            at - row.seen_at > AWAY_AFTER,
            _figures_of(row.figures),
        )
        for row in rows
        if row.figures and row.started_at
    ]


def _figures_of(said: dict[str, Any]) -> ServerFigures:
    """Return the figures of a server, which may be of another release."""
    known = ServerFigures.__dataclass_fields__.keys()
    return ServerFigures(**{name: value for name, value in said.items() if name in known})
