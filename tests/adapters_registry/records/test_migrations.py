"""A database of an earlier release is brought up to date with all that is in it, or not touched."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Engine, MetaData, Table, create_engine, inspect, select

from adapters_registry.records import migrations
from adapters_registry.records.database import open_database
from adapters_registry.records.tables import Base

FIRST = "0001"


def fill(engine: Engine) -> dict[str, Any]:
    """One row in each table that others refer to, and one that refers to them."""
    tables = MetaData()
    with engine.begin() as connection:
        for name in ("tenants", "adapters", "versions"):
            Table(name, tables, autoload_with=connection)
        rows = {
            "tenants": {"name": "acme", "created_at": datetime(2026, 1, 1, tzinfo=UTC)},
            "adapters": {"id": 7, "tenant": "acme", "name": "home", "last_number": 1},
            "versions": {"id": 9, "adapter_id": 7, "number": 1, "digest": "ab" * 32},
        }
        for name, row in rows.items():
            table = tables.tables[name]
            connection.execute(table.insert().values(_complete(table, row)))
    return rows


def _complete(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    """Whatever else the table wants."""
    wanted = [c for c in table.columns if not c.nullable and c.server_default is None]
    values: dict[type, Any] = {int: 1, str: "x", bool: False, object: [], dict: []}
    values |= {datetime: datetime(2026, 1, 1, tzinfo=UTC)}
    return {c.name: values[c.type.python_type] for c in wanted} | row


def old_database(url: str, revision: str = FIRST) -> Engine:
    """As `open_database` connects, at an earlier schema, by default the first release's."""
    engine = open_database(url)
    with engine.begin() as connection:
        Base.metadata.drop_all(connection)
        connection.exec_driver_sql("DROP TABLE alembic_version")
    migrations.upgrade(engine, revision)
    return engine


def test_what_is_in_it_stays(database_url: str) -> None:
    engine = old_database(database_url)
    rows = fill(engine)
    engine.dispose()
    engine = open_database(database_url)
    with engine.begin() as connection:
        for name, row in rows.items():
            table = Base.metadata.tables[name]
            (found,) = connection.execute(select(table)).mappings()
            assert {column: found[column] for column in row} == row
    differences = set(inspect(engine).get_table_names()) ^ set(Base.metadata.tables)
    assert differences == {"alembic_version"}
    engine.dispose()


def test_a_migration_that_fails_changes_nothing(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = old_database(database_url)
    fill(engine)
    before = _schema(engine)

    def upgrade_and_fail(*arguments: Any) -> None:
        upgrade(*arguments)
        raise RuntimeError("in the middle")

    upgrade = command.upgrade
    with monkeypatch.context() as patch:
        patch.setattr(command, "upgrade", upgrade_and_fail)
        with pytest.raises(RuntimeError):
            migrations.upgrade(engine)
    assert _schema(engine) == before
    migrations.upgrade(engine)
    assert _schema(engine) != before
    engine.dispose()


def _schema(engine: Engine) -> dict[str, list[str]]:
    inspector = inspect(create_engine(engine.url))
    return {
        name: [column["name"] for column in inspector.get_columns(name)]
        for name in inspector.get_table_names()
    }
