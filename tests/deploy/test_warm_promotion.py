"""Two servers under requests: a warm promotion lets none of them wait for a load."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.deploy.proxies import free_port
from tests.deploy.replica import LOAD_SECONDS_VARIABLE, Replica
from tests.deploy.versions import CONTENT, database_in, register_versions
from tests.under_load import asking

LOADS_FOR = "0.4"
CLIENTS = 4
"""Of each server."""


class Answer(NamedTuple):
    server: int
    version: int
    tier: str


@pytest.fixture
def key(tmp_path: Path) -> str:
    return register_versions(tmp_path, 4)


@pytest.fixture
def replicas(tmp_path: Path, key: str) -> Iterator[list[Replica]]:
    url, content = database_in(tmp_path), tmp_path / CONTENT
    slow = {LOAD_SECONDS_VARIABLE: LOADS_FOR}
    started = [Replica(free_port(), url, content, environment=slow) for _ in range(2)]
    try:
        for replica in started:
            replica.wait_until_ready()
        yield started
    finally:
        for replica in started:
            replica.kill()


@asynccontextmanager
async def under_load(
    replicas: list[Replica], http: httpx.AsyncClient
) -> AsyncIterator[list[Answer]]:
    """Clients that ask both servers on and on; what they were answered by."""
    seen: list[Answer] = []

    async def ask_on(number: int, replica: Replica) -> None:
        while True:
            answer = await http.post(
                f"{replica.url}/v1/completions", json={"model": "home", "stream": True}
            )
            assert answer.status_code == 200, answer.text
            heads = answer.headers
            seen.append(Answer(number, int(heads["x-adapter-version"]), heads["x-adapter-tier"]))

    clients = [ask_on(*each) for each in enumerate(replicas) for _ in range(CLIENTS)]
    async with asking(clients):
        await until(seen, 1)
        yield seen


async def until(seen: list[Answer], version: int) -> None:
    """Wait until both servers have answered many times with a version."""
    async with asyncio.timeout(60):
        while any(
            sum((a.server, a.version) == (server, version) for a in seen) < 3 * CLIENTS
            for server in (0, 1)
        ):
            await asyncio.sleep(0.05)


def tiers(seen: list[Answer], version: int) -> set[str]:
    return {answer.tier for answer in seen if answer.version == version}


async def test_no_request_after_the_flip_waits_for_a_load(
    replicas: list[Replica], key: str
) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(headers=headers, timeout=60) as http:

        async def promote(version: int, **more: Any) -> dict[str, Any]:
            path = f"{replicas[0].url}/admin/adapters/default/home/aliases/live"
            answer = await http.put(path, json={"targets": [{"version": version}], **more})
            assert answer.status_code == 200, answer.text
            return dict(answer.json())

        async with under_load(replicas, http) as seen:
            await promote(2)
            await until(seen, 2)
            assert "disk" in tiers(seen, 2), "a promotion that isn't warm has requests wait"
            said = (await promote(3, warm=True))["warm"]
            await until(seen, 3)
            assert tiers(seen, 3) <= {"host", "slot"}, json.dumps(said)
            assert said["complete"]
            assert [server["state"] for server in said["servers"]] == ["warm", "warm"]
        replicas[1].kill()
        said = (await promote(4, warm=True, warm_seconds=2))["warm"]
        assert not said["complete"], "the dead server counts until it has been silent for long"
        assert sorted(server["state"] for server in said["servers"]) == ["unheard", "warm"]
