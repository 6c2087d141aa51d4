"""A database of an earlier release is brought up to date with all that is in it, or not touched."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Engine, MetaData, Table, create_engine, inspect, select

from adapters_registry.check.base import BaseSpec
from adapters_registry.records import migrations
from adapters_registry.records.database import open_database
from adapters_registry.records.migrations import Schema, SchemaTooNew, schema_of
from adapters_registry.records.tables import Base
from adapters_registry.registry import Registry
from tests.adapters_registry.adapters import register
from tests.later_release import LATER, migrate_later
from tests.tiny import AdapterFactory

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


def test_a_release_that_is_rolled_back_goes_on(
    registry: Registry, database_url: str, make_adapter: AdapterFactory, tiny_base: BaseSpec
) -> None:
    """Running, and started again, on the schema of a later release that only adds to it."""
    register(registry, make_adapter(seed=1))
    migrate_later(registry.engine)
    register(registry, make_adapter(seed=2), promote=True)
    before = _schema(registry.engine)
    again = Registry(database_url, registry.content, tiny_base)
    register(again, make_adapter(seed=3), promote=True)
    registry.refresh()
    for server in (registry, again):
        adapter = server.get_adapter("default", "home")
        assert sorted(adapter.ready) == [1, 2, 3]
        assert adapter.live == adapter.ready[3]
    assert schema_of(again.engine) is Schema.NEWER
    assert _schema(registry.engine) == before
    again.close()


def test_a_release_that_cannot_work_with_a_schema_says_so(database_url: str) -> None:
    engine = open_database(database_url)
    migrate_later(engine, oldest=LATER)
    before = _schema(engine)
    with pytest.raises(SchemaTooNew, match=LATER):
        open_database(database_url)
    assert schema_of(engine) is Schema.UNKNOWN
    assert _schema(engine) == before
    engine.dispose()
