"""Two servers judge canaries: the one that leads is killed, and the other goes on where it was.

The judge's clock goes ten times as fast, so that its leases end soon.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.proxies import free_port
from tests.deploy.replica import FAILING_VARIABLE, SPEED_VARIABLE, Replica
from tests.deploy.versions import CONTENT, database_in, register_versions
from tests.under_load import asking

HOME = "/admin/adapters/default/home"
EQUAL, WORSE = 2, 3
CLIENTS = 6


@dataclass
class Fleet:
    folder: Path
    replicas: list[Replica]
    key: str

    @property
    def running(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.process.poll() is None]

    @property
    def leader(self) -> Replica | None:
        """The server that judges the last canary, as the database says it."""
        with sqlite3.connect(self.folder / "registry.db") as database:
            query = "SELECT claimed_by FROM judged_canaries ORDER BY id DESC LIMIT 1"
            (server_id,) = database.execute(query).fetchone()
        for replica in self.running:
            file = self.folder / f"replica-{replica.port}" / "server.id"
            if file.read_text().strip() == server_id:
                return replica
        return None


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("judged")
    key = register_versions(folder, 3)
    environment = {FAILING_VARIABLE: f"default/home@{WORSE}", SPEED_VARIABLE: "10"}
    place = database_in(folder), folder / CONTENT
    replicas = [Replica(free_port(), *place, environment=environment) for _ in range(2)]
    try:
        yield Fleet(folder, replicas, key)
    finally:
        for replica in replicas:
            replica.kill()


@pytest.fixture
def fleet(started: Fleet) -> Fleet:
    """Both servers, also if a test before has killed one."""
    for replica in started.replicas:
        if replica not in started.running:
            replica.start()
    for replica in started.replicas:
        replica.wait_until_ready()
    return started


@pytest.fixture
async def http(fleet: Fleet) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {fleet.key}"}
    async with httpx.AsyncClient(headers=headers, timeout=60) as client:
        yield client


@asynccontextmanager
async def under_load(fleet: Fleet, http: httpx.AsyncClient) -> AsyncIterator[Counter[int]]:
    """Clients that ask any server that answers, and the statuses that they were answered with."""
    statuses: Counter[int] = Counter()

    async def ask_on() -> None:
        while True:
            for replica in fleet.running:
                body = {"model": "home", "stream": True}
                try:
                    answer = await http.post(f"{replica.url}/v1/completions", json=body)
                except httpx.TransportError:  # it was killed meanwhile
                    continue
                statuses[answer.status_code] += 1
            await asyncio.sleep(0)

    async with asking(ask_on() for _ in range(CLIENTS)):
        yield statuses


async def ask(
    fleet: Fleet, http: httpx.AsyncClient, method: str, path: str, **more: Any
) -> dict[str, Any]:
    answer = await http.request(method, f"{fleet.running[0].url}{path}", **more)
    assert answer.is_success, answer.text
    return dict(answer.json())


async def begin(fleet: Fleet, http: httpx.AsyncClient, version: int) -> None:
    plan = {"steps": [20, 50, 100], "every_seconds": 20, "judge": ["error_rate"]}
    body = {"version": version, "min_requests": 20, **plan}
    await ask(fleet, http, "POST", f"{HOME}/canary", json=body)


async def until(
    fleet: Fleet, http: httpx.AsyncClient, is_there: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """What a server says of the canary, as soon as it is what a test waits for."""
    async with asyncio.timeout(60):
        while not is_there(shown := await ask(fleet, http, "GET", f"{HOME}/canary")):
            await asyncio.sleep(0.05)
    return shown


async def weights_of_steps(fleet: Fleet, http: httpx.AsyncClient, version: int) -> list[int]:
    """The shares to which the judge has raised a version, one after the other."""
    query = f"action=canary.go_on&subject=default/home@{version}"
    rows = (await ask(fleet, http, "GET", f"/admin/audit?{query}"))["data"]
    return [row["after"]["weight"] for row in reversed(rows)]


async def live(fleet: Fleet, http: httpx.AsyncClient) -> list[dict[str, int]]:
    targets: list[dict[str, int]] = (await ask(fleet, http, "GET", f"{HOME}/aliases/live"))[
        "targets"
    ]
    return targets


async def test_an_equal_version_goes_through_though_its_judge_is_killed(
    fleet: Fleet, http: httpx.AsyncClient
) -> None:
    async with under_load(fleet, http) as statuses:
        await begin(fleet, http, EQUAL)
        await until(fleet, http, lambda shown: shown["weight"] == 50)
        leader = fleet.leader
        assert leader is not None
        leader.kill()
        shown = await until(fleet, http, lambda shown: shown["state"] != "running")
    assert shown["state"] == "promoted", shown
    assert await live(fleet, http) == [{"version": EQUAL, "weight": 100}]
    assert await weights_of_steps(fleet, http, EQUAL) == [50, 100], "no step was taken again"
    assert statuses.keys() == {200}


async def test_a_worse_version_goes_back_in_its_first_step_though_its_judge_is_killed(
    fleet: Fleet, http: httpx.AsyncClient
) -> None:
    before = await live(fleet, http)
    await begin(fleet, http, WORSE)
    async with asyncio.timeout(30):
        while (leader := fleet.leader) is None:
            await asyncio.sleep(0.05)
    leader.kill()
    async with under_load(fleet, http) as statuses:
        shown = await until(fleet, http, lambda shown: shown["state"] != "running")
    assert (shown["state"], shown["weight"], shown["finding"]) == ("rolled back", 20, "worse")
    assert "100.0% of the canary's requests failed" in shown["reason"]
    assert await live(fleet, http) == before
    assert await weights_of_steps(fleet, http, WORSE) == []
    assert statuses.keys() == {200, 500}
