"""Promotions that wait until servers have a version in memory, over HTTP."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import httpx
import pytest

from adapters_registry.records.catalog import Target, VersionRecord
from adapters_registry.registry import Registry
from adapters_registry.rollout import warm
from adapters_registry.rollout.promotion import Warmth
from adapters_registry.rollout.reports import report_warmth
from server.residency.leases import Leases
from server.residency.states import Tier
from server.rollout import warm_promotions
from server.rollout.rollouts import Rollouts
from tests.server.answers import CHAT, assert_error
from tests.server.rollout.conftest import PlantedEngine

LIVE = "/admin/adapters/default/home/aliases/live"
SECOND = {"targets": [{"version": 2}]}

pytestmark = pytest.mark.usefixtures("home")


async def until_warming(registry: Registry) -> int:
    """Wait until a promotion waits. Returns its epoch."""
    async with asyncio.timeout(20):
        while not registry.catalog.warming:
            await asyncio.sleep(0.01)
    promotion = registry.catalog.warming[0].warming
    assert promotion is not None
    return promotion.epoch


async def until_tier(leases: Leases, version: VersionRecord, tier: Tier) -> None:
    async with asyncio.timeout(20):
        while leases.tier_of(version) is not tier:
            await asyncio.sleep(0.01)


def says(registry: Registry, server: str, epoch: int, warmth: Warmth) -> None:
    with registry.session() as session:
        report_warmth(session, server, {epoch: warmth})


async def test_the_alias_moves_when_the_version_is_in_memory(
    client: httpx.AsyncClient, engine: PlantedEngine, registry: Registry
) -> None:
    engine.load_seconds = 0.05
    answer = await client.put(LIVE, json={**SECOND, "warm": True})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["targets"] == [{"version": 2, "weight": 100}]
    assert body["warm"]["complete"]
    assert body["warm"]["servers"] == [{"server": registry.server_id, "state": "warm"}]
    assert answer.headers["etag"] == f'"{body["revision"]}"'
    first = await client.post(CHAT, json={"model": "home"})
    assert first.headers["x-adapter-tier"] == "host"
    assert first.headers["x-adapter-version"] == "2"


async def test_without_warm_the_first_request_finds_it_on_disk(
    client: httpx.AsyncClient, engine: PlantedEngine
) -> None:
    """What the test above is worth: here the version isn't in memory."""
    engine.load_seconds = 0.05
    answer = await client.put(LIVE, json=SECOND)
    assert "warm" not in answer.json()
    first = await client.post(CHAT, json={"model": "home"})
    assert first.headers["x-adapter-tier"] == "disk"


async def test_it_waits_for_the_other_servers(
    client: httpx.AsyncClient, registry: Registry
) -> None:
    with registry.session() as session:
        for server in ("busy", "idle", "other-base"):
            report_warmth(session, server, {})
    promoting = asyncio.create_task(client.put(LIVE, json={**SECOND, "warm": True}))
    epoch = await until_warming(registry)
    says(registry, "idle", epoch, Warmth.UNUSED)
    says(registry, "other-base", epoch, Warmth.NOT_OFFERED)
    says(registry, "busy", epoch, Warmth.LOADING)
    await asyncio.sleep(0.3)
    assert not promoting.done()
    assert (await client.post(CHAT, json={"model": "home"})).json()["model"] == "default/home@1"
    says(registry, "busy", epoch, Warmth.WARM)
    said = (await promoting).json()["warm"]
    assert said["complete"]
    states = {each["server"]: each["state"] for each in said["servers"]}
    assert states == {
        "busy": "warm",
        "idle": "unused",
        "other-base": "not offered",
        registry.server_id: "warm",
    }


async def test_after_its_time_the_alias_moves_and_says_who_was_late(
    client: httpx.AsyncClient, engine: PlantedEngine, registry: Registry
) -> None:
    engine.fails_to_load.add("default/home@2")
    with registry.session() as session:
        report_warmth(session, "silent", {})
    body = {**SECOND, "warm": True, "warm_seconds": 0.3}
    said = (await client.put(LIVE, json=body)).json()
    assert said["targets"] == [{"version": 2, "weight": 100}]
    assert not said["warm"]["complete"]
    states = {each["server"]: each["state"] for each in said["warm"]["servers"]}
    assert states["silent"] == "unheard"
    assert states[registry.server_id] in ("loading", "failed")


async def test_another_change_comes_first(client: httpx.AsyncClient, registry: Registry) -> None:
    with registry.session() as session:
        report_warmth(session, "silent", {})
    promoting = asyncio.create_task(client.put(LIVE, json={**SECOND, "warm": True}))
    await until_warming(registry)
    await client.put(LIVE, json={"targets": [{"version": 3}]})
    assert_error(await promoting, 409, "conflict")
    assert (await client.get(LIVE)).json()["targets"] == [{"version": 3, "weight": 100}]


async def test_a_promotion_whose_server_has_ended_is_carried_out(
    client: httpx.AsyncClient,
    registry: Registry,
    rollouts: Rollouts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry.apply(
        warm.begin,
        "default",
        "home",
        "live",
        [Target(2, 100)],
        server="gone",
        wait=timedelta(0),
    )
    await rollouts.warm.take_over()
    assert registry.catalog.warming, "its server may still do it"
    monkeypatch.setattr(warm_promotions, "ABANDONED_AFTER", timedelta(0))
    await rollouts.warm.take_over()
    assert not registry.catalog.warming
    assert (await client.get(LIVE)).json()["targets"] == [{"version": 2, "weight": 100}]


async def test_a_version_that_is_not_promoted_after_all_leaves(
    client: httpx.AsyncClient, registry: Registry, leases: Leases
) -> None:
    with registry.session() as session:
        report_warmth(session, "silent", {})
    promoting = asyncio.create_task(client.put(LIVE, json={**SECOND, "warm": True}))
    await until_warming(registry)
    second = registry.get_adapter("default", "home").ready[2]
    await until_tier(leases, second, Tier.HOST)
    assert leases.engine_slots.host.states[second.version_id].kept
    await client.put(LIVE, json={"targets": [{"version": 3}]})
    await promoting
    await until_tier(leases, second, Tier.DISK)


@pytest.mark.parametrize(
    "body",
    [
        {**SECOND, "warm": True, "warm_seconds": 0},
        {**SECOND, "warm": True, "warm_seconds": 1e9},
        {"targets": [{"version": 9}], "warm": True},
    ],
)
async def test_what_cannot_be_is_refused_at_once(
    client: httpx.AsyncClient, body: dict[str, object]
) -> None:
    assert_error(await client.put(LIVE, json=body), 400, "invalid_request")
