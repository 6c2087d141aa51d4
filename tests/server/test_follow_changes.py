"""What another server changes is seen; a database that is away for a while does no harm."""

import asyncio

import pytest
from sqlalchemy.exc import OperationalError

from adapters_registry.catalog import VersionRecord
from adapters_registry.content import ContentStore
from adapters_registry.records import Registry
from adapters_registry.retirement import delete_adapter
from server import process
from server.adapters import Adapters


async def test_changes_are_followed_past_a_database_that_was_away(
    registry: Registry,
    adapters: Adapters,
    home: VersionRecord,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "FOLLOW_INTERVAL_SECONDS", 0.01)
    other = Registry(database_url, ContentStore(registry.content.root), registry.base)
    refresh, failures = registry.refresh, [OperationalError("", {}, Exception())] * 3

    def refresh_unless_away() -> None:
        if failures:
            raise failures.pop()
        refresh()

    monkeypatch.setattr(registry, "refresh", refresh_unless_away)
    following = asyncio.create_task(process.follow_changes(registry, adapters))
    await asyncio.to_thread(other.apply, delete_adapter, "default", "home", force=True)
    async with asyncio.timeout(5):
        while registry.catalog.adapters:
            await asyncio.sleep(0.01)
    following.cancel()
    assert not failures
    other.close()
