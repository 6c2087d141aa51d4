"""Two of our servers behind the real proxies: none of them has to be there all the time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
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
from tests.deploy.load import Load, ask_on
from tests.deploy.proxies import Proxy, free_port, start_envoy, start_haproxy
from tests.deploy.replica import NUM_TOKENS, Replica
from tests.tiny import TINY_BASE

ADAPTERS = [f"adapter{number}" for number in range(6)]
CLIENTS = 6
"""Of each proxy."""
NOTICED_SECONDS = 3
"""A proxy looks every two whether a server is ready."""


def model_of(client: int) -> str:
    return f"default/{ADAPTERS[client % len(ADAPTERS)]}@1"


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
    load, headers = Load(2 * CLIENTS), {"Authorization": f"Bearer {fleet.key}"}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(headers=headers, limits=limits, timeout=60) as http:
        for proxy in fleet.proxies:
            await _until_found(http, proxy)
        clients = [
            asyncio.create_task(ask_on(http, proxy.url, model_of(number), load, NUM_TOKENS))
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
