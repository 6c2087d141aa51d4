"""The schema's history (Alembic). `upgrade` brings a database to the newest schema."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, func, select

_LOCK = 0x10CA91EC
"""Any number that nothing else in the database locks."""


class Schema(enum.Enum):
    """A database's schema, compared with this release's."""

    EMPTY = enum.auto()
    OLDER = enum.auto()
    CURRENT = enum.auto()
    UNKNOWN = enum.auto()
    """A later release has changed it."""


def schema_of(engine: Engine) -> Schema:
    """Compare a database's schema with this release's. Raises `SQLAlchemyError` if it is away."""
    scripts = ScriptDirectory.from_config(_config())
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    if current is None:
        return Schema.EMPTY
    if current == scripts.get_current_head():
        return Schema.CURRENT
    known = {script.revision for script in scripts.walk_revisions()}
    return Schema.OLDER if current in known else Schema.UNKNOWN


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Apply all migrations that the database lacks, in one transaction."""
    config = _config()
    begin = _begin_sqlite if engine.dialect.name == "sqlite" else _begin_postgresql
    with begin(engine) as connection:
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
