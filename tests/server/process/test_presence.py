"""A server says that it runs, and what it holds; the others learn of it, and of its end."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlalchemy.exc import SQLAlchemyError

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.store import ContentStore
from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.servers import (
    AWAY_AFTER,
    FORGOTTEN_AFTER,
    ServerRecord,
    read_servers,
)
from adapters_registry.registry import Registry
from adapters_registry.rollout.tables import ServerReport
from server.process.presence import Presence
from server.residency.leases import Leases
from server.settings import Settings
from tests.postgres import Postgres
from tests.server.fake_engine import FakeEngine


def known(registry: Registry) -> list[ServerRecord]:
    with registry.session() as session:
        return read_servers(session)


async def report_once(presence: Presence, registry: Registry) -> None:
    """Let a server report until its row is new."""
    with registry.session() as session:
        session.execute(
            update(ServerReport)
            .where(ServerReport.id == registry.server_id)
            .values(seen_at=ServerReport.started_at)
        )
    reporting = asyncio.create_task(presence.keep_up(0.01))
    async with asyncio.timeout(30):
        while not any(
            s.id == registry.server_id and s.seen_at > s.started_at for s in known(registry)
        ):
            await asyncio.sleep(0.01)
    reporting.cancel()


async def test_a_server_says_what_it_holds_and_that_it_stops(
    registry: Registry, leases: Leases, engine: FakeEngine, home: VersionRecord
) -> None:
    presence = Presence(registry, leases, engine, 4, 8000, lambda: 0)
    await report_once(presence, registry)
    (own,) = known(registry)
    assert own.id == registry.server_id
    assert own.name.endswith(":8000")
    assert (own.figures.engine, own.figures.slots, own.figures.in_slots) == ("ready", 4, 0)
    assert (own.figures.on_disk, own.figures.elsewhere) == (1, 0)
    assert own.figures.disk_bytes == home.size_bytes
    async with leases.lease(home, "default"):
        await report_once(presence, registry)
    (own,) = known(registry)
    assert (own.figures.in_slots, own.figures.on_disk, own.figures.running) == (1, 0, 1)
    registry.content.discard(home.digest)
    await leases.drain(home)
    await report_once(presence, registry)
    assert known(registry)[0].figures.elsewhere == 1
    presence.end()
    assert known(registry) == []


async def test_servers_know_each_other(
    postgres: Postgres, tmp_path: Path, tiny_base: BaseSpec
) -> None:
    url = postgres.migrated_database()
    engine = FakeEngine()
    registries, presences = [], []
    for number in (1, 2):
        registry = Registry(url, ContentStore(tmp_path / str(number)), tiny_base)
        leases = Leases.of(Settings(max_loras=4), engine, registry)
        presences.append(Presence(registry, leases, engine, 4, 8000 + number, lambda: 0))
        registries.append(registry)
        await report_once(presences[-1], registry)
    one, two = registries
    assert [server.id for server in known(one)] == [server.id for server in known(two)]
    assert {server.id for server in known(one)} == {one.server_id, two.server_id}
    presences[0].end()
    assert [server.id for server in known(two)] == [two.server_id]
    for registry in registries:
        registry.close()


@pytest.mark.parametrize(
    ("ago", "port", "is_kept"),
    [
        (AWAY_AFTER / 2, 8000, True),
        (2 * AWAY_AFTER, 8000, False),
        (2 * AWAY_AFTER, 8001, True),
        (2 * FORGOTTEN_AFTER, 8001, False),
    ],
)
async def test_a_server_that_is_gone_is_away_and_then_forgotten(
    registry: Registry,
    leases: Leases,
    engine: FakeEngine,
    ago: timedelta,
    port: int,
    is_kept: bool,
) -> None:
    """`port`: 8000 is that of a server which crashed and was started again."""
    presence = Presence(registry, leases, engine, 4, 8000, lambda: 0)
    await report_once(presence, registry)
    at = known(registry)[0].seen_at - ago
    with registry.session() as session:
        name = f"{presence.name.rpartition(':')[0]}:{port}"
        figures = {"engine": "ready", "slots": 4, "of_a_later_release": 1}
        session.add(ServerReport(id="gone", name=name, started_at=at, seen_at=at, figures=figures))
    gone = next(server for server in known(registry) if server.id == "gone")
    assert gone.is_away == (ago > AWAY_AFTER)
    await report_once(presence, registry)
    assert any(server.id == "gone" for server in known(registry)) == is_kept


async def test_a_database_that_is_away_stops_no_server(
    registry: Registry, leases: Leases, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    presence = Presence(registry, leases, engine, 4, 8000, lambda: 0)
    tried = asyncio.Event()
    loop = asyncio.get_running_loop()

    def fail() -> None:
        loop.call_soon_threadsafe(tried.set)
        raise SQLAlchemyError("away")

    with monkeypatch.context() as patch:
        patch.setattr(registry, "session", fail)
        reporting = asyncio.create_task(presence.keep_up(0.01))
        for _ in range(2):
            tried.clear()
            await asyncio.wait_for(tried.wait(), 30)
        presence.end()
    async with asyncio.timeout(30):
        while not known(registry):
            await asyncio.sleep(0.01)
    reporting.cancel()
