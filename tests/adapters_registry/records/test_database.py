"""A writer that is stuck holds up neither readers nor, for long, other writers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.store import ContentStore
from adapters_registry.errors import RegistryBusy
from adapters_registry.records import database
from adapters_registry.records.tables import Epoch, Tenant
from adapters_registry.records.tenants import create_tenant
from adapters_registry.registry import Registry
from tests.postgres import Postgres

SHORT = "?options=-c%20lock_timeout%3D1s"


def test_a_stuck_writer_on_postgresql(
    postgres: Postgres, tmp_path: Path, tiny_base: BaseSpec
) -> None:
    url = postgres.new_database()
    registry = Registry(url + SHORT, ContentStore(tmp_path / "content"), tiny_base)
    stuck = database.open_database(url)
    with Session(stuck) as session, ThreadPoolExecutor(1) as pool:
        session.execute(update(Epoch).values(value=Epoch.value + 1))
        session.execute(update(Tenant).values(quota={"adapters": 3}, epoch=99))
        change = pool.submit(registry.apply, create_tenant, "acme")
        registry.refresh()
        assert not change.done(), "the catalog is read while a change waits"
        with pytest.raises(OperationalError):
            change.result()
        session.commit()
    registry.apply(create_tenant, "acme")
    assert "acme" in registry.catalog.tenants
    registry.close()
    stuck.dispose()


def test_the_timeouts_of_postgresql(postgres: Postgres) -> None:
    url = postgres.new_database()
    for name, expected in (("", "5s"), (SHORT, "1s")):
        engine = database.open_database(url + name)
        with engine.connect() as connection:
            assert connection.scalar(text("SHOW lock_timeout")) == expected
        engine.dispose()


def test_a_change_does_not_wait_for_ever_for_others_of_its_process(
    database_url: str, tmp_path: Path, tiny_base: BaseSpec
) -> None:
    content = ContentStore(tmp_path / "content")
    registry = Registry(database_url, content, tiny_base, writer_seconds=0.01)
    with ThreadPoolExecutor(1) as pool, registry.change() as change:
        waiting = pool.submit(registry.apply, create_tenant, "acme")
        with pytest.raises(RegistryBusy):
            waiting.result()
        assert change.session.scalar(select(Epoch.value))
    registry.close()
