"""Two servers under requests: after a warm promotion none of them reads disk or origin.

`tests/deploy/test_warm_promotion.py` has the same with servers that end, on a fake engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from adapters_registry.content.adapter_files import ADAPTER_FILES
from tests.long_form import LONG
from tests.real_engine.codes import answer, code_of, write_adapter, write_base
from tests.real_engine.running_server import RunningServer
from tests.under_load import asking

NUM_TOKENS = 8
VERSIONS = (1, 2, 3)
"""Each is the adapter of its number."""
ENOUGH = 12
"""Answers of a server."""
LIVE = "/admin/adapters/default/home/aliases/live"


class Answer(NamedTuple):
    server: int
    version: int
    tier: str
    text: str


@pytest.fixture
def servers(tmp_path: Path, s3: str) -> Iterator[list[RunningServer]]:
    """Two servers with one database and one origin; they have `home`, whose version 1 is live."""
    write_base(tmp_path / "base")
    flags = (
        *("--base", str(tmp_path / "base"), "--kv-cache-gib", "0.02", "--max-loras", "2"),
        *("--database-url", f"sqlite:///{tmp_path / 'registry.db'}", "--origin", s3),
    )
    first = RunningServer(tmp_path / "first", *flags)
    started = [first]
    try:
        first.wait_until_ready()
        started.append(RunningServer(tmp_path / "second", *flags, key_of=first))
        for number in VERSIONS:
            register(first, tmp_path / f"home{number}", number)
        started[1].wait_until_ready()
        yield started
    finally:
        for server in started:
            server.stop()


def register(server: RunningServer, directory: Path, number: int) -> None:
    write_adapter(directory, number)
    files = [("files", (name, (directory / name).read_bytes())) for name in ADAPTER_FILES]
    path = "/admin/adapters?wait=true"
    added = server.admin("POST", path, data={"name": "home"}, files=files)
    assert added.status_code == 201, added.text


@asynccontextmanager
async def under_load(
    servers: list[RunningServer], http: httpx.AsyncClient
) -> AsyncIterator[list[Answer]]:
    """Clients that ask both servers on and on, and what they were answered."""
    seen: list[Answer] = []
    body = {"model": "home", "prompt": "tell me ", "max_tokens": NUM_TOKENS, "temperature": 0}

    async def ask_on(number: int, url: str) -> None:
        while True:
            said = await http.post(f"{url}/v1/completions", json=body)
            assert said.status_code == 200, said.text
            version, tier = said.headers["x-adapter-version"], said.headers["x-adapter-tier"]
            seen.append(Answer(number, int(version), tier, said.json()["choices"][0]["text"]))

    twice = [ask_on(number, server.url) for number, server in enumerate(servers) for _ in range(2)]
    async with asking(twice):
        yield seen


async def answers_by(seen: list[Answer], version: int) -> list[Answer]:
    """Wait until both servers have answered often by a version, and return these answers."""
    async with asyncio.timeout(120):
        while True:
            found = [each for each in seen if each.version == version]
            if all(sum(a.server == number for a in found) >= ENOUGH for number in (0, 1)):
                return found
            await asyncio.sleep(0.05)


@pytest.mark.skipif(not LONG, reason="`make test-long` runs it")
async def test_no_request_after_the_flip_finds_disk_or_origin(
    servers: list[RunningServer],
) -> None:
    headers = {"Authorization": f"Bearer {servers[0].key}"}
    async with httpx.AsyncClient(headers=headers, timeout=120) as http:

        async def promote(version: int, **more: Any) -> dict[str, Any]:
            body = {"targets": [{"version": version}], **more}
            moved = await http.put(servers[0].url + LIVE, json=body)
            assert moved.status_code == 200, moved.text
            return dict(moved.json())

        async with under_load(servers, http) as seen:
            await answers_by(seen, 1)
            await promote(2)
            cold = {(a.server, a.tier) for a in await answers_by(seen, 2)}
            assert cold & {(0, "disk"), (1, "origin")}, "without it requests wait for a load"
            said = (await promote(3, warm=True))["warm"]
            warm = {(a.server, a.tier) for a in await answers_by(seen, 3)}
        assert {tier for _, tier in warm} <= {"host", "slot"}, said
        assert said["complete"]
        assert [server["state"] for server in said["servers"]] == ["warm", "warm"]
        assert all(a.text == answer(code_of(a.version), NUM_TOKENS) for a in seen)
        print(f"\n{len(seen)} answers; cold {sorted(cold)}, warm {sorted(warm)}: {said}")
