"""Collections of a running server: by hand, and by themselves."""

import asyncio
from datetime import timedelta

import httpx

from adapters_registry.collection import Collector
from adapters_registry.records.catalog import VersionRecord
from adapters_registry.registry import Registry
from server.auth import Keys
from server.process.upkeep import collect_interval, collect_regularly
from tests.server.answers import assert_error

GARBAGE = "/admin/garbage"
NOTHING = {"adapters": 0, "size_bytes": 0}


async def test_by_hand(client: httpx.AsyncClient, home: VersionRecord, registry: Registry) -> None:
    assert (await client.post(GARBAGE)).json()["disk"] == NOTHING
    await client.delete("/admin/adapters/default/home/versions/1?force=true")
    expected = {"adapters": 1, "size_bytes": home.size_bytes}
    body = (await client.post(f"{GARBAGE}?dry_run=true")).json()
    assert body == {"disk": expected, "origin": NOTHING, "rejected_versions": 0}
    assert list(registry.content.sizes()) == [home.digest]
    assert (await client.post(GARBAGE)).json()["disk"] == expected
    assert registry.content.sizes() == {}


async def test_for_admins_only(client: httpx.AsyncClient, keys: Keys) -> None:
    key = keys.create("default", ["adapters", "inference"])
    response = await client.post(GARBAGE, headers={"authorization": f"Bearer {key}"})
    assert_error(response, 403, "insufficient_scope")


async def test_by_itself(
    client: httpx.AsyncClient, home: VersionRecord, registry: Registry
) -> None:
    collector = Collector(registry, timedelta(0), timedelta(days=7))
    collecting = asyncio.create_task(collect_regularly(collector, 0.01))
    await client.delete("/admin/adapters/default/home?force=true")
    async with asyncio.timeout(10):
        while registry.content.sizes():
            await asyncio.sleep(0.01)
    collecting.cancel()


def test_collections_are_often_enough_for_the_time_of_grace() -> None:
    assert [collect_interval(grace) for grace in (0, 60, 3600, 1e6)] == [1, 10, 600, 600]
