"""The schema's history (Alembic). `upgrade` brings a database to the newest schema.

A release can be rolled back without its database: the older program goes on with the newer schema
if `schema_support` says so. A migration that the programs before it cannot work with, because it
removes or renames what they use, or adds a column that they must fill, sets `oldest` to its own
revision. One that only adds tables, or columns that are null or have a default in the database,
leaves it as it is.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from adapters_registry.records.tables import SchemaSupport

log = logging.getLogger(__name__)

_LOCK = 0x10CA91EC
"""Any number that nothing else in the database locks."""


class Schema(enum.Enum):
    """A database's schema, compared with this release's."""

    EMPTY = enum.auto()
    OLDER = enum.auto()
    CURRENT = enum.auto()
    NEWER = enum.auto()
    """A later release has changed it, so that this release can work with it."""
    UNKNOWN = enum.auto()
    """A later release has changed it, so that this release cannot."""


class SchemaTooNew(SQLAlchemyError):
    """A later release has changed the schema so that this release cannot work with it."""


def schema_of(engine: Engine) -> Schema:
    """Compare a database's schema with this release's. Raises `SQLAlchemyError` if it is away."""
    with engine.connect() as connection:
        return _schema_of(connection)


def _schema_of(connection: Connection) -> Schema:
    scripts = _scripts()
    current, head = _revision_of(connection), scripts.get_current_head()
    if current is None:
        return Schema.EMPTY
    if current == head:
        return Schema.CURRENT
    if current in {script.revision for script in scripts.walk_revisions()}:
        return Schema.OLDER
    oldest = connection.scalar(select(SchemaSupport.oldest))
    return Schema.NEWER if oldest and head and oldest <= head else Schema.UNKNOWN


def _revision_of(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config


@cache
def _scripts() -> ScriptDirectory:
    """Read the migrations, once: they don't change while a process runs."""
    return ScriptDirectory.from_config(_config())


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Apply all migrations that the database lacks, in one transaction.

    A newer schema stays as it is, if this release can work with it.

    Raises:
        SchemaTooNew: it cannot.
    """
    config = _config()
    begin = _begin_sqlite if engine.dialect.name == "sqlite" else _begin_postgresql
    with begin(engine) as connection:
        schema = _schema_of(connection)
        if schema is Schema.UNKNOWN:
            raise SchemaTooNew(
                f"the database has the schema of a later release ({_revision_of(connection)}): "
                "install that release, or restore a backup from before its start"
            )
        if schema is Schema.NEWER:
            log.warning(
                "the database has the schema of a later release (%s), and this release works with "
                "it: what only the later one knows is left alone",
                _revision_of(connection),
            )
            return
        if schema is Schema.CURRENT and revision == "head":
            return
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


@contextmanager
def _begin_postgresql(engine: Engine) -> Iterator[Connection]:
    with engine.begin() as connection:
        # A migration of a large table, or of another replica, may take longer than a change may.
        for timeout in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
            connection.exec_driver_sql(f"SET LOCAL {timeout} = 0")
        # Replicas that start together: one migrates, the others wait and find it done.
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
        yield connection


@contextmanager
def _begin_sqlite(engine: Engine) -> Iterator[Connection]:
    """Open a transaction without foreign keys, which are checked at its end.

    SQLite changes a table by creating another in its place, and references to the table would
    prevent that (https://www.sqlite.org/lang_altertable.html, section 7). Python's driver does not
    begin a transaction for changes of the schema, so this function begins it.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.detach()  # It has no foreign keys, so it must not go back to the pool.
        connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            yield connection
            if broken := connection.exec_driver_sql("PRAGMA foreign_key_check").all():
                raise RuntimeError(f"the migration would break references: {broken[:3]}")
        except BaseException:
            connection.exec_driver_sql("ROLLBACK")
            raise
        connection.exec_driver_sql("COMMIT")
