"""The SQL database: SQLite in a file, or PostgreSQL; the same tables and code on both."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, func, make_url, select
from sqlalchemy.orm import Session

from adapters_registry.records import migrations
from adapters_registry.records.network_storage import network_file_system
from adapters_registry.records.tables import UTCDateTime, now

log = logging.getLogger(__name__)

_POSTGRES_TIMEOUTS = {"connect_timeout": 5, "tcp_user_timeout": 5000}
"""In seconds and in milliseconds. Without them a network that drops packets would keep a caller
waiting for minutes. See https://www.postgresql.org/docs/current/libpq-connect.html."""

_POSTGRES_OPTIONS = (
    "-c lock_timeout=5s -c statement_timeout=15s -c idle_in_transaction_session_timeout=30s"
)
"""All writers wait for one row (`Change.begin`), so no transaction may hold it for long."""

IDLE_CONNECTIONS = 2
"""How many connections each process keeps open. By default PostgreSQL takes 100 from all servers
together."""


def open_database(url: str) -> Engine:
    """Connect to a SQLAlchemy URL and bring the schema up to date.

    Raises:
        SQLAlchemyError: the database does not answer, or the URL is wrong.
        ImportError: the URL names a driver that is not installed.
    """
    engine = connect(url)
    migrations.upgrade(engine)
    return engine


def connect(url: str) -> Engine:
    """Return SQLAlchemy's engine for a URL. It connects at its first use and changes no schema.

    Raises:
        SQLAlchemyError: the URL is wrong.
        ImportError: it names a driver that is not installed.
    """
    database = _with_driver(url)
    arguments: dict[str, Any] = {}
    if database.get_backend_name() == "postgresql":
        arguments = {"options": _POSTGRES_OPTIONS, **_POSTGRES_TIMEOUTS}
        arguments = {name: arguments[name] for name in arguments.keys() - database.query.keys()}
    engine = create_engine(
        database, pool_pre_ping=True, pool_size=IDLE_CONNECTIONS, connect_args=arguments
    )
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _configure_sqlite(database))
    return engine


def database_time(session: Session) -> datetime:
    """Return the present moment by the clock that all servers of this database share."""
    if session.get_bind().dialect.name == "postgresql":
        return session.scalars(select(func.clock_timestamp(type_=UTCDateTime))).one()
    return now()


def _with_driver(url: str) -> URL:
    """Return the URL with the installed driver, where it names PostgreSQL without a driver."""
    parsed = make_url(url)
    if parsed.drivername in ("postgres", "postgresql"):
        return parsed.set(drivername="postgresql+psycopg")
    return parsed


def _configure_sqlite(database: URL) -> Callable[[Any, Any], None]:
    """Return the function that sets up each connection to a file."""
    journal = "WAL"  # readers do not wait for the writer
    file = Path(database.database or "")
    if database.database and (kind := network_file_system(file)):
        journal = "DELETE"
        log.warning(
            "%s is on network storage (%s): SQLite's write-ahead log is not safe there, so a "
            "rollback journal is used, which is slower. Keep LORAPLEX_DATA_DIR on a local disk, or "
            "set LORAPLEX_DATABASE_URL to a PostgreSQL database",
            file,
            kind,
        )
    # FULL: a commit survives power loss.
    pragmas = (f"journal_mode={journal}", "synchronous=FULL", "foreign_keys=ON")

    def configure(connection: Any, _record: Any) -> None:
        # The time-out comes first: changing the journal's mode may have to wait for a lock.
        for pragma in ("busy_timeout=5000", *pragmas):
            connection.execute(f"PRAGMA {pragma}")

    return configure
