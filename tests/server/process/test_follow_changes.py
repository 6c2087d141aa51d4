"""What another server changes is seen; a database that is away for a while does no harm."""

import asyncio
from functools import partial
from shutil import copytree

import pytest
from sqlalchemy.exc import OperationalError

from adapters_registry.content.store import ContentStore
from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.retirement import delete_adapter
from adapters_registry.registry import Registry
from server.process.upkeep import follow_changes
from server.residency.leases import Leases
from server.settings import Settings
from tests.server.fake_engine import FakeEngine
from tests.tiny import AdapterFactory


async def test_changes_are_followed_past_a_database_that_was_away(
    registry: Registry,
    leases: Leases,
    home: VersionRecord,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = Registry(database_url, ContentStore(registry.content.root), registry.base)
    refresh, failures = registry.refresh, [OperationalError("", {}, Exception())] * 3

    def refresh_unless_away() -> None:
        if failures:
            raise failures.pop()
        refresh()

    monkeypatch.setattr(registry, "refresh", refresh_unless_away)
    following = asyncio.create_task(follow_changes(registry, leases, interval_seconds=0.01))
    await asyncio.to_thread(other.apply, delete_adapter, "default", "home", force=True)
    async with asyncio.timeout(5):
        while registry.catalog.adapters:
            await asyncio.sleep(0.01)
    following.cancel()
    assert not failures
    other.close()


async def test_a_promotion_is_brought_up_where_the_adapter_is_asked_for(
    registry: Registry, home: VersionRecord, make_adapter: AdapterFactory
) -> None:
    engines = [FakeEngine(), FakeEngine()]
    asked, other = (Leases.of(Settings(max_loras=4), engine, registry) for engine in engines)
    async with asked.lease(home, "default"):
        pass
    stage = partial(copytree, make_adapter(seed=2), dirs_exist_ok=True)
    version, _ = registry.register("default", "home", "test", stage, promote=True)
    registry.accept(version, registry.check_files(version))
    for adapters in (asked, other):
        adapters.follow(registry.catalog)
    async with asyncio.timeout(5):
        while len(engines[0].loads) < 2:
            await asyncio.sleep(0.01)
    assert engines[0].loads == ["default/home@1", "default/home@2"]
    assert not engines[1].loads
