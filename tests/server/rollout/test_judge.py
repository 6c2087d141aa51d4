"""Judged canaries on a fake engine with a clock of their own: planted versions, over HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from adapters_registry.content.store import ContentStore
from adapters_registry.records.catalog import VersionRecord
from adapters_registry.registry import Registry
from adapters_registry.rollout.canaries import LEASE
from server.residency.leases import Leases
from server.rollout.rollouts import Rollouts
from server.settings import Settings
from tests.server.answers import CHAT, assert_error
from tests.server.rollout.conftest import Behaviour, Clock, PlantedEngine

HOME = "/admin/adapters/default/home"
EVERY = 60
RIGHT = {f"question {n}": f"answer {n}" for n in range(12)}
DATA = [
    {
        "messages": [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": answer},
        ]
    }
    for asked, answer in RIGHT.items()
]

pytestmark = pytest.mark.usefixtures("home")


class Rig:
    """The server, its traffic, and its judge."""

    def __init__(self, client: httpx.AsyncClient, rollouts: Rollouts, time: Clock) -> None:
        self.client, self.rollouts, self.time = client, rollouts, time

    async def begin(self, **more: Any) -> httpx.Response:
        body = {
            "version": 2,
            "steps": [20, 50, 100],
            "every_seconds": EVERY,
            "judge": ["error_rate", "answer_length"],
            "min_requests": 20,
        }
        return await self.client.post(f"{HOME}/canary", json=body | more)

    async def ask(self, count: int, model: str = "home") -> list[int]:
        """Requests of different users. The split deals them by a hash, always alike."""
        answers = [
            await self.client.post(CHAT, json={"model": model, "user": f"user {n}"})
            for n in range(count)
        ]
        self.rollouts.arms.save()
        return [answer.status_code for answer in answers]

    async def show(self) -> dict[str, Any]:
        shown: dict[str, Any] = (await self.client.get(f"{HOME}/canary")).json()
        return shown

    async def judge(self, after: float = 0) -> dict[str, Any]:
        self.time.pass_seconds(after)
        await self.rollouts.judge.tick()
        return await self.show()

    async def live(self) -> list[tuple[int, int]]:
        targets = (await self.client.get(f"{HOME}/aliases/live")).json()["targets"]
        return [(target["version"], target["weight"]) for target in targets]

    async def audited(self, action: str) -> list[dict[str, Any]]:
        query = {"action": action}
        rows: list[dict[str, Any]] = (await self.client.get("/admin/audit", params=query)).json()[
            "data"
        ]
        return rows

    async def until_evaluated(self) -> None:
        async with asyncio.timeout(30):
            while self.rollouts.judge.num_evaluations:
                await asyncio.sleep(0.01)


@pytest.fixture
def rig(client: httpx.AsyncClient, rollouts: Rollouts, time: Clock) -> Rig:
    return Rig(client, rollouts, time)


async def test_an_equal_version_goes_through(rig: Rig) -> None:
    begun = await rig.begin()
    assert begun.status_code == 201, begun.text
    assert (begun.json()["state"], begun.json()["weight"]) == ("running", 20)
    assert await rig.live() == [(2, 20), (1, 80)]
    await rig.ask(150)
    assert (await rig.judge(EVERY / 2))["weight"] == 20, "not before its time"
    assert (await rig.judge(EVERY))["weight"] == 50
    await rig.ask(100)
    shown = await rig.judge(EVERY)
    assert shown["state"] == "promoted", shown
    assert await rig.live() == [(2, 100)]
    went_on = await rig.audited("canary.go_on")
    assert len(went_on) == 2
    assert all(entry["after"]["reason"].startswith("no worse: 0.0%") for entry in went_on)
    assert went_on[0]["actor"] == "server"


async def test_the_server_looks_by_itself_while_there_is_a_split(rig: Rig) -> None:
    await rig.begin()
    await rig.ask(150)
    rig.time.pass_seconds(EVERY)
    await rig.rollouts.tick()
    assert (await rig.show())["weight"] == 50


async def test_a_version_that_fails_goes_back_within_its_first_step(
    rig: Rig, engine: PlantedEngine
) -> None:
    engine.behaviours["default/home@2"] = Behaviour(fails=True)
    await rig.begin()
    assert 500 in await rig.ask(150)
    shown = await rig.judge()
    assert (shown["state"], shown["finding"]) == ("rolled back", "worse")
    assert "100.0% of the canary's requests failed, 0.0% of live's" in shown["reason"]
    assert await rig.live() == [(1, 100)]
    (end,) = await rig.audited("canary.end")
    assert end["after"] == {"state": "rolled back", "reason": shown["reason"]}
    assert set(await rig.ask(20)) == {200}


async def test_answers_of_another_length_go_back(rig: Rig, engine: PlantedEngine) -> None:
    engine.behaviours["default/home@2"] = Behaviour(tokens=90)
    await rig.begin()
    await rig.ask(150)
    shown = await rig.judge()
    assert shown["state"] == "rolled back"
    assert "an answer has 90.0 tokens, live's 20.0" in shown["reason"]


async def test_a_version_that_answers_held_out_data_worse_goes_back(
    rig: Rig, engine: PlantedEngine
) -> None:
    engine.behaviours["default/home@1"] = Behaviour(answers=RIGHT)
    begun = await rig.begin(judge=None, data=DATA)
    assert begun.json()["judge"] == ["error_rate", "first_token_p95", "evaluation"]
    await rig.judge()
    await rig.until_evaluated()
    shown = await rig.judge()
    assert shown["state"] == "rolled back", "without any traffic: the data is enough"
    assert "exact_match on 12 held-out conversations is 0.000, live's 1.000" in shown["reason"]


async def test_an_equal_version_passes_held_out_data(rig: Rig, engine: PlantedEngine) -> None:
    for number in (1, 2):
        engine.behaviours[f"default/home@{number}"] = Behaviour(answers=RIGHT)
    await rig.begin(judge=["evaluation"], data=DATA)
    shown = await rig.judge(EVERY)
    assert shown["finding"] == "evaluation", "it waits for the answers"
    await rig.until_evaluated()
    assert (await rig.judge())["weight"] == 50
    assert (await rig.judge(EVERY))["state"] == "promoted"


async def test_without_enough_traffic_it_holds_and_says_so_once(rig: Rig) -> None:
    await rig.begin()
    await rig.ask(30)
    shown = await rig.judge(EVERY)
    assert (shown["state"], shown["weight"], shown["finding"]) == ("running", 20, "traffic")
    assert "needs 20" in shown["reason"]
    for _ in range(3):
        await rig.judge(EVERY)
    assert len(await rig.audited("canary.hold")) == 1
    await rig.ask(150)
    assert (await rig.judge())["weight"] == 50, "as soon as there is enough"


async def test_only_requests_that_the_split_dealt_are_counted(rig: Rig) -> None:
    await rig.begin()
    for model in ("home@2", "home@1", "base"):
        await rig.ask(5, model)
    assert (await rig.judge())["canary_requests"] == 0
    await rig.ask(60, "home@live")
    shown = await rig.judge()
    assert shown["canary_requests"] + shown["live_requests"] == 60
    assert shown["canary_requests"] > 3


async def test_a_change_by_hand_ends_it(rig: Rig) -> None:
    await rig.begin()
    await rig.client.put(
        f"{HOME}/aliases/live",
        json={"targets": [{"version": 2, "weight": 5}, {"version": 1, "weight": 95}]},
    )
    shown = await rig.judge(EVERY)
    assert (shown["state"], shown["finding"]) == ("ended", "moved")
    (end,) = await rig.audited("canary.end")
    assert end["actor"].startswith("key ")
    assert await rig.live() == [(2, 5), (1, 95)]


async def test_another_server_goes_on_when_the_first_is_gone(
    rig: Rig, registry: Registry, engine: PlantedEngine
) -> None:
    await rig.begin()
    await rig.ask(150)
    await rig.judge()
    second = Registry(str(registry.engine.url), ContentStore(registry.content.root), registry.base)
    leases = Leases.of(Settings(max_loras=4), engine, second)
    other = Rollouts(second, leases, rig.time)
    rig.time.pass_seconds(LEASE.total_seconds() / 2)
    await other.judge.tick()
    assert (await rig.show())["weight"] == 20, "the first one judges it"
    rig.time.pass_seconds(EVERY)
    await other.judge.tick()
    second.close()
    registry.refresh()
    shown = await rig.show()
    assert shown["weight"] == 50, shown


async def test_the_last_step_may_wait_for_servers(rig: Rig) -> None:
    await rig.begin(steps=[50, 100], warm=True)
    await rig.ask(100)
    await rig.judge(EVERY)
    async with asyncio.timeout(30):
        while await rig.live() != [(2, 100)]:
            await asyncio.sleep(0.01)
    async with asyncio.timeout(30):
        while (await rig.judge())["state"] == "running":
            await asyncio.sleep(0.01)
    shown = await rig.show()
    assert (shown["state"], shown["weight"]) == ("promoted", 100)
    assert await rig.audited("alias.warm.end")
    (went_on,) = await rig.audited("canary.go_on")
    assert went_on["after"]["weight"] == 100
    assert went_on["after"]["reason"].startswith("no worse")


async def test_nothing_is_shown_before_the_first(rig: Rig) -> None:
    assert_error(await rig.client.get(f"{HOME}/canary"), 404, "not_found")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"steps": [10, 50]}, "steps"),
        ({"steps": [50, 10, 100]}, "steps"),
        ({"every_seconds": 0}, "every_seconds"),
        ({"judge": ["evaluation"]}, "data"),
        ({"judge": []}, "judge"),
        ({"judge": ["looks"]}, "judge.0"),
        ({"data": [{"messages": []}], "judge": None}, "data"),
        ({"data": DATA, "metric": "loss", "judge": None}, "metric"),
        ({"data": DATA, "metric": "json_valid", "judge": None}, "metric"),
        ({"margins": {"error_rate": -1}}, "margins"),
        ({"min_requests": 0}, "min_requests"),
        ({"version": 1}, "targets"),
        ({"version": 9}, "targets"),
        ({"weight": 3}, "weight"),
    ],
)
async def test_canaries_that_cannot_be(rig: Rig, change: dict[str, Any], param: str) -> None:
    error = assert_error(await rig.begin(**change), 400, "invalid_request")
    assert error["param"] == param, error
    assert await rig.live() == [(1, 100)], "nothing was begun"


async def test_a_failed_start_keeps_no_record(rig: Rig, app: FastAPI, home: VersionRecord) -> None:
    await rig.begin(version=9)
    assert_error(await rig.client.get(f"{HOME}/canary"), 404, "not_found")
