"""Two of our servers behind the real proxies: none of them has to be there all the time."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from shutil import copytree

import httpx
import pytest

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.store import ContentStore
from adapters_registry.registry import Registry
from server.auth import Keys
from tests.adapter_recipe import Recipe
from tests.deploy.proxies import Proxy, free_port, start_envoy, start_haproxy
from tests.deploy.replica import NUM_TOKENS, Replica
from tests.tiny import TINY_BASE

ADAPTERS = [f"adapter{number}" for number in range(6)]
CLIENTS = 6
"""Of each proxy."""
MORE_ANSWERS = 4 * CLIENTS
"""Enough for each client to have asked again after something happened."""
NOTICED_SECONDS = 3
"""A proxy looks every two whether a server is ready."""


@dataclass
class Load:
    """What clients saw, in the order of the answers' ends."""

    num_asked: int = 0
    num_open: int = 0
    num_answered: int = 0
    failures: list[tuple[int, str]] = field(default_factory=list)
    """Which request it was, counted from 1, and what became of it."""
    ended: bool = False

    async def more(self) -> None:
        """Wait until so many more requests have been answered."""
        enough = self.num_answered + MORE_ANSWERS
        async with asyncio.timeout(60):
            while self.num_answered < enough:
                await asyncio.sleep(0.05)


@dataclass
class Fleet:
    replicas: list[Replica]
    proxies: list[Proxy]
    key: str


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    url, content = f"sqlite:///{folder / 'registry.db'}", folder / "content"
    key = _registered(url, content, folder)
    fleet = Fleet([Replica(free_port(), url, content) for _ in range(2)], [], key)
    try:
        for replica in fleet.replicas:
            replica.wait_until_ready()
        fleet.proxies += [start_envoy(folder, fleet.replicas)]
        fleet.proxies += [start_haproxy(folder, fleet.replicas)]
        yield fleet
    finally:
        for proxy in fleet.proxies:
            proxy.kill()
        for replica in fleet.replicas:
            replica.kill()


def _registered(url: str, content: Path, folder: Path) -> str:
    """A database with adapters that are ready, and a key."""
    base = BaseSpec.from_config("tiny", TINY_BASE, max_rank=8)
    registry = Registry(url, ContentStore(content), base)
    for seed, name in enumerate(ADAPTERS):
        files = Recipe().make(folder / name, base, seed)
        stage = partial(copytree, files, dirs_exist_ok=True)
        version, _ = registry.register("default", name, "test", stage)
        registry.accept(version, registry.check_files(version))
    key = Keys(registry).create("default", ["inference"])
    registry.close()
    return key


@asynccontextmanager
async def under_load(fleet: Fleet) -> AsyncIterator[Load]:
    """Clients that stream on and on through both proxies."""
    load, headers = Load(), {"Authorization": f"Bearer {fleet.key}"}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(headers=headers, limits=limits, timeout=60) as http:
        for proxy in fleet.proxies:
            await _until_found(http, proxy)
        clients = [
            asyncio.create_task(_ask_on(http, proxy.url, number, load))
            for proxy in fleet.proxies
            for number in range(CLIENTS)
        ]
        await load.more()
        yield load
        load.ended = True
        await asyncio.gather(*clients)


async def _until_found(http: httpx.AsyncClient, proxy: Proxy) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                if (await http.get(f"{proxy.url}/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.1)


async def _ask_on(http: httpx.AsyncClient, url: str, number: int, load: Load) -> None:
    model = ADAPTERS[number % len(ADAPTERS)]
    whole = Counter({f"default/{model}@1": NUM_TOKENS, "[DONE]": 1})
    while not load.ended:
        load.num_open += 1
        load.num_asked += 1
        which = load.num_asked
        try:
            seen = await _streamed(http, url, model)
            assert seen == whole, seen
        except (httpx.HTTPError, AssertionError) as error:
            load.failures.append((which, f"{model} through {url}: {error!r}"))
        else:
            load.num_answered += 1
        load.num_open -= 1


async def _streamed(http: httpx.AsyncClient, url: str, model: str) -> Counter[str]:
    """Who each event of an answer says it is from."""
    body = {"model": model, "stream": True}
    seen: Counter[str] = Counter()
    async with http.stream("POST", f"{url}/v1/completions", json=body) as response:
        if response.status_code != 200:
            await response.aread()
            raise AssertionError(f"{response.status_code} {response.text[:200]}")
        async for line in response.aiter_lines():
            data = line.removeprefix("data: ")
            if line:
                seen[data if data == "[DONE]" else json.loads(data)["model"]] += 1
    return seen


async def test_a_rolling_restart_fails_no_request(fleet: Fleet) -> None:
    async with under_load(fleet) as load:
        for replica in fleet.replicas:
            assert await asyncio.to_thread(replica.terminate) == 0
            await load.more()
            replica.start()
            await asyncio.to_thread(replica.wait_until_ready)
            await asyncio.sleep(NOTICED_SECONDS)
    assert not load.failures


async def test_a_killed_server_fails_no_more_than_it_had_open(fleet: Fleet) -> None:
    async with under_load(fleet) as load:
        num_open, last_before = load.num_open, load.num_asked
        fleet.replicas[0].kill()
        await load.more()
        fleet.replicas[0].start()
        await asyncio.to_thread(fleet.replicas[0].wait_until_ready)
        await load.more()
    assert len(load.failures) <= num_open
    assert all(which <= last_before for which, _ in load.failures), load.failures
