"""What a later release might do to the database."""

from __future__ import annotations

from sqlalchemy import Engine, update

from adapters_registry.records.tables import SchemaSupport

LATER = "9999"
"""The revision of its schema."""


def migrate_later(engine: Engine, *, oldest: str = "") -> None:
    """Add a column and a table. `oldest`: the oldest release that can work with them, if not this.

    Of several calls only the first one adds anything.
    """
    with engine.begin() as connection:
        current = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
        if current != LATER:
            for statement in (
                "ALTER TABLE versions ADD COLUMN later VARCHAR(8) NOT NULL DEFAULT 'x'",
                "CREATE TABLE later (id INTEGER PRIMARY KEY)",
                f"UPDATE alembic_version SET version_num = '{LATER}'",
            ):
                connection.exec_driver_sql(statement)
        if oldest:
            connection.execute(update(SchemaSupport).values(oldest=oldest))
