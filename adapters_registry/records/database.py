"""The SQL database: SQLite in a file, or PostgreSQL; the same tables and code on both."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import URL, Engine, create_engine, event, func, make_url, select, text
from sqlalchemy.orm import Session, sessionmaker

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

_FIRST_WRITABLE = {"target_session_attrs": "read-write"}
"""If several hosts are named, a standby among them is passed over: all servers write."""

ANSWER_SECONDS = 20.0
"""How long PostgreSQL may take for one answer; more than `statement_timeout`. The timeouts above
notice neither a server that is stopped, whose machine goes on to acknowledge what arrives, nor a
network that loses the answer."""

IDLE_CONNECTIONS = 2
"""How many connections each process keeps open. By default PostgreSQL takes 100 from all servers
together."""


_SEVERAL_HOSTS = re.compile(
    r"(?P<scheme>\w+(?:\+\w+)?://)(?P<user>[^@/?]*@)?(?P<hosts>[^/?]*,[^/?]*)"
)
"""The beginning of a URL of PostgreSQL's own form with several hosts, which SQLAlchemy writes
another way. See https://www.postgresql.org/docs/current/libpq-connect.html, section 34.1.1.3."""

T = TypeVar("T")


class _Connection(psycopg.Connection[Any]):
    """A connection that is given up if the server doesn't answer."""

    answer_seconds: float | None = ANSWER_SECONDS
    """None: it may take any time."""

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Do what psycopg's method does. Raises `OperationalError` after `answer_seconds`."""
        try:
            return super().wait(gen, interval, timeout or self.answer_seconds)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
                self.pgconn.finish()  # The late answer would be taken for that of the next query.
            raise


def open_database(url: str) -> Engine:
    """Connect to a SQLAlchemy URL and bring the schema up to date.

    Raises:
        SQLAlchemyError: the database does not answer, or the URL is wrong.
        ImportError: the URL names a driver that is not installed.
    """
    engine = connect(url, answer_seconds=None)
    migrations.upgrade(engine)
    if engine.dialect.name == "sqlite":
        return engine
    engine.dispose()  # a migration may take any time, and what follows may not
    return connect(url)


def connect(url: str, *, answer_seconds: float | None = ANSWER_SECONDS) -> Engine:
    """Return SQLAlchemy's engine for a URL. It connects at its first use and changes no schema.

    `answer_seconds` is how long PostgreSQL may take for one answer before it counts as away.
    None: any time.

    Raises:
        SQLAlchemyError: the URL is wrong.
        ImportError: it names a driver that is not installed.
    """
    database = parse_url(url)
    arguments: dict[str, Any] = {}
    if database.get_backend_name() == "postgresql":
        arguments = {"options": _POSTGRES_OPTIONS, **_POSTGRES_TIMEOUTS}
        if len(database.normalized_query.get("host", ())) > 1:
            arguments |= _FIRST_WRITABLE
        arguments = {name: arguments[name] for name in arguments.keys() - database.query.keys()}
    engine = create_engine(
        database, pool_pre_ping=True, pool_size=IDLE_CONNECTIONS, connect_args=arguments
    )
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _configure_sqlite(database))
    elif engine.dialect.driver == "psycopg":
        event.listen(engine, "do_connect", _bounded(answer_seconds))
    return engine


@contextmanager
def snapshot(sessions: sessionmaker[Session]) -> Iterator[Session]:
    """Open a transaction to read in: all queries see the database as it was at the first of them.

    By default each query sees what was committed before it, so that what two of them return may
    not belong together.
    """
    with sessions() as session:
        if session.get_bind().dialect.name == "postgresql":
            session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        else:
            session.execute(text("BEGIN"))  # Python's driver begins none for a query
        yield session


def database_time(session: Session) -> datetime:
    """Return the present moment by the clock that all servers of this database share."""
    if session.get_bind().dialect.name == "postgresql":
        return session.scalars(select(func.clock_timestamp(type_=UTCDateTime))).one()
    return now()


def parse_url(url: str) -> URL:
    """Return a URL as SQLAlchemy reads it, with the installed driver if it names PostgreSQL alone.

    Several hosts may be named as PostgreSQL's own programs take them:
    `postgresql://USER@HOST1:5432,HOST2:5432/DATABASE`.

    Raises:
        SQLAlchemyError: the URL is wrong.
    """
    if several := _SEVERAL_HOSTS.match(url):
        rest = make_url(f"{several['scheme']}{several['user'] or ''}{url[several.end() :]}")
        parsed = rest.update_query_pairs(
            [("host", host) for host in several["hosts"].split(",")], append=True
        )
    else:
        parsed = make_url(url)
    if parsed.drivername in ("postgres", "postgresql"):
        return parsed.set(drivername="postgresql+psycopg")
    return parsed


def _bounded(answer_seconds: float | None) -> Callable[..., _Connection]:
    """Return the function that connects to PostgreSQL."""

    def connect_to(_dialect: Any, _record: Any, arguments: Any, options: Any) -> _Connection:
        connection = _Connection.connect(*arguments, **options)
        connection.answer_seconds = answer_seconds
        return connection

    return connect_to


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
