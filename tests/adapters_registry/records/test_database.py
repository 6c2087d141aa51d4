"""A writer that is stuck holds up neither readers nor, for long, other writers."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import OperationalError, ProgrammingError
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


def test_a_database_that_hangs_is_given_up(postgres: Postgres) -> None:
    engine = database.connect(postgres.new_database(), answer_seconds=0.5)
    with engine.connect() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        assert isinstance(pid, int)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(OperationalError):
                connection.execute(text("SELECT 1"))
        finally:
            os.kill(pid, signal.SIGCONT)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT pg_backend_pid()")) != pid, "it isn't used again"
        with pytest.raises(ProgrammingError):
            connection.execute(text("SELECT wrong"))
        connection.rollback()
        assert connection.scalar(text("SELECT 2")) == 2, "an error is an answer"
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "hosts", "driver", "password"),
    [
        ("postgresql://me:a%40b@one:1,two:2/db", ("one:1", "two:2"), "psycopg", "a@b"),
        ("postgres://one,two:2/db?sslmode=require", ("one", "two:2"), "psycopg", None),
        (
            "postgresql+psycopg2://me@/db?host=one:1&host=two:2",
            ("one:1", "two:2"),
            "psycopg2",
            None,
        ),
    ],
)
def test_several_hosts(url: str, hosts: tuple[str, ...], driver: str, password: str | None) -> None:
    parsed = database.parse_url(url)
    assert (parsed.query["host"], parsed.database) == (hosts, "db")
    assert (parsed.get_driver_name(), parsed.password) == (driver, password)


def test_of_several_hosts_the_one_that_takes_changes_is_used(postgres: Postgres) -> None:
    url = postgres.new_database()
    name = url.rpartition("/")[2]
    engine = database.connect(url)
    with engine.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
        connection.commit()
    engine.dispose()
    address = url.partition("@")[2].partition("/")[0]
    both = database.connect(url.replace(address, f"127.0.0.1:1,{address}"))
    with pytest.raises(OperationalError, match="read-only"):
        both.connect()
    chosen = database.connect(
        f"{url.replace(address, f'{address},{address}')}?target_session_attrs=any"
    )
    chosen.connect().close()
    chosen.dispose()


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
