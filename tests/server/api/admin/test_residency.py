"""Pins, prefetches, and what changes of the registry mean for the engine, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.server.answers import CHAT, assert_error, files_of
from tests.server.fake_engine import FakeEngine
from tests.tiny import AdapterFactory

HOME = "/admin/adapters/default/home"
LIVE = f"{HOME}/aliases/live"


@pytest_asyncio.fixture
async def home(client: httpx.AsyncClient, make_adapter: AdapterFactory) -> None:
    """An adapter with five ready versions, all of which the engine has forgotten."""
    for seed in range(5):
        files = files_of(make_adapter(seed=seed))
        url = "/admin/adapters?wait=true"
        assert (await client.post(url, data={"name": "home"}, files=files)).status_code == 201


@pytest_asyncio.fixture
async def fresh(home: None, engine: FakeEngine) -> None:
    engine.generation += 1
    engine.slots, engine.host = set(), set()
    engine.loads.clear()


async def resident(client: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    rows = (await client.get("/admin/residency")).json()["data"]
    return {row["model"].removeprefix("default/home@"): row for row in rows}


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not is_so():
            await asyncio.sleep(0.005)


async def test_a_pin_brings_a_version_to_a_slot_and_keeps_it(
    client: httpx.AsyncClient, fresh: None, engine: FakeEngine
) -> None:
    assert (await client.put(f"{HOME}/versions/2/pin")).status_code == 204
    await until(lambda: len(engine.slots) == 1)
    for number in (1, 3, 4, 5, 1, 3, 4, 5):
        answer = await client.post(CHAT, json={"model": f"home@{number}"})
        assert answer.status_code == 200
    answer = await client.post(CHAT, json={"model": "home@2"})
    assert answer.headers["x-adapter-tier"] == "slot"
    assert engine.loads.count("default/home@2") == 1
    shown = (await client.get("/v1/models/home@2")).json()["adapter"]
    assert (shown["tier"], shown["pinned"]) == ("slot", True)
    assert (await resident(client))["2"]["pinned"]
    assert (await client.delete(f"{HOME}/versions/2/pin")).status_code == 204
    assert not (await resident(client))["2"]["pinned"]


async def test_a_pin_outlives_the_engine(
    client: httpx.AsyncClient, fresh: None, engine: FakeEngine
) -> None:
    await client.put(f"{HOME}/versions/2/pin")
    await until(lambda: len(engine.slots) == 1)
    engine.generation += 1
    engine.slots, engine.host = set(), set()
    await client.post(CHAT, json={"model": "home@1"})
    await until(lambda: len(engine.slots) == 2)


async def test_one_slot_stays_without_a_pin(client: httpx.AsyncClient, fresh: None) -> None:
    for number in (1, 2, 3):  # of four slots
        assert (await client.put(f"{HOME}/versions/{number}/pin")).status_code == 204
    response = await client.put(f"{HOME}/versions/4/pin")
    error = assert_error(response, 409, "conflict")
    assert "3 of 4 slots" in str(error["message"])
    assert (await client.put(f"{HOME}/versions/3/pin")).status_code == 204, "it is pinned already"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", f"{HOME}/versions/9/pin", 404),
        ("DELETE", f"{HOME}/versions/9/pin", 404),
        ("POST", f"{HOME}/versions/9/prefetch", 404),
        ("PUT", "/admin/adapters/default/nobody/versions/1/pin", 404),
        ("PUT", f"{HOME}/versions/2/pin", 409),
        ("POST", f"{HOME}/versions/2/prefetch", 409),
    ],
)
async def test_only_ready_versions(
    client: httpx.AsyncClient, fresh: None, method: str, path: str, status: int
) -> None:
    assert (await client.delete(f"{HOME}/versions/2")).status_code == 204
    assert_error(
        await client.request(method, path), status, "conflict" if status == 409 else "not_found"
    )


async def test_a_prefetched_version_waits_in_host_memory(
    client: httpx.AsyncClient, fresh: None, engine: FakeEngine
) -> None:
    response = await client.post(f"{HOME}/versions/3/prefetch")
    assert (response.status_code, response.json()["tier"]) == (202, "disk")
    await until(lambda: len(engine.host) == 1)
    assert not engine.slots
    answer = await client.post(CHAT, json={"model": "home@3"})
    assert answer.headers["x-adapter-tier"] == "host"


async def test_promotion_fetches_the_new_and_lets_the_old_go(
    client: httpx.AsyncClient, fresh: None, engine: FakeEngine
) -> None:
    await client.post(CHAT, json={"model": "home"})
    old = set(engine.slots)
    await client.put(LIVE, json={"targets": [{"version": 2}]})
    await until(lambda: engine.loads == ["default/home@1", "default/home@2"])
    await until(lambda: not old & (engine.slots | engine.host))
    answer = await client.post(CHAT, json={"model": "home"})
    assert answer.json()["model"] == "default/home@2"
    assert answer.headers["x-adapter-tier"] == "host"


async def test_a_pinned_version_stays_though_its_alias_moves(
    client: httpx.AsyncClient, fresh: None, engine: FakeEngine
) -> None:
    await client.put(f"{HOME}/versions/1/pin")
    await until(lambda: len(engine.slots) == 1)
    pinned = set(engine.slots)
    await client.put(LIVE, json={"targets": [{"version": 2}]})
    await until(lambda: len(engine.host) == 2)
    assert pinned <= engine.slots


async def test_retired_versions_leave(
    client: httpx.AsyncClient, fresh: None, engine: FakeEngine
) -> None:
    for number in (1, 2):
        await client.post(CHAT, json={"model": f"home@{number}"})
    await client.delete(f"{HOME}/versions/2")
    await until(lambda: len(engine.host) == 1)
    assert_error(await client.post(CHAT, json={"model": "home@2"}), 404, "model_not_found")
    await client.delete(f"{HOME}?force=true")
    await until(lambda: not engine.host)
    assert await resident(client) == {}
