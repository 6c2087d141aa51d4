"""Two servers on one PostgreSQL: changes reach both; a database that is away stops no answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import copytree

import httpx
import pytest
import pytest_asyncio

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.store import ContentStore
from adapters_registry.registry import Registry
from server.app import build_server
from server.process.upkeep import follow_changes
from server.settings import Settings
from tests.postgres import Postgres
from tests.server.answers import CHAT, assert_error
from tests.server.fake_engine import FakeEngine
from tests.tiny import AdapterFactory

LIVE = "/admin/adapters/default/home/aliases/live"


@dataclass
class Server:
    registry: Registry
    client: httpx.AsyncClient

    async def version(self) -> str:
        """Which version answers the bare name."""
        response = await self.client.post(CHAT, json={"model": "home"})
        assert response.status_code == 200, response.text
        return str(response.json()["model"])

    async def promote(self, number: int) -> httpx.Response:
        return await self.client.put(LIVE, json={"targets": [{"version": number, "weight": 100}]})


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(url: str, folder: Path, base: BaseSpec, key: list[str]) -> AsyncIterator[Server]:
    """A server on a fake engine that follows the database; the first one makes the key."""
    registry, engine = Registry(url, ContentStore(folder), base), FakeEngine()
    server = build_server(Settings(max_loras=4), registry, engine)
    if not key:
        key.append(server.services.keys.create("default", ["admin", "inference"]))
    leases = server.services.leases
    following = asyncio.create_task(follow_changes(registry, leases, interval_seconds=0.01))
    transport = httpx.ASGITransport(server.app)
    headers = {"Authorization": f"Bearer {key[0]}"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://loraplex", headers=headers
    ) as client:
        yield Server(registry, client)
    following.cancel()
    registry.close()


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.migrated_database()


@pytest_asyncio.fixture
async def servers(
    url: str, tmp_path: Path, tiny_base: BaseSpec, make_adapter: AdapterFactory
) -> AsyncIterator[list[Server]]:
    """Two of them with an adapter of two versions; they share the folder of its files."""
    async with AsyncExitStack() as stack:
        key: list[str] = []
        both = [
            await stack.enter_async_context(running(url, tmp_path / "content", tiny_base, key))
            for _ in range(2)
        ]
        registry = both[0].registry
        for seed in (1, 2):
            stage = partial(copytree, make_adapter(seed=seed), dirs_exist_ok=True)
            version, _ = registry.register("default", "home", "test", stage)
            registry.accept(version, registry.check_files(version))

        async def seen() -> bool:
            return any(len(a.ready) == 2 for a in both[1].registry.catalog.adapters.values())

        await until(seen)
        yield both


async def test_changes_through_either_are_seen_by_both(servers: list[Server]) -> None:
    one, two = servers
    for through, other, number in ((one, two, 2), (two, one, 1)):
        assert (await through.promote(number)).status_code == 200
        assert await through.version() == f"default/home@{number}", "at once where it was made"

        async def follows(server: Server = other, expected: int = number) -> bool:
            return await server.version() == f"default/home@{expected}"

        await until(follows)


async def test_what_one_suspends_both_refuse(servers: list[Server]) -> None:
    one, two = servers
    suspension = "/admin/adapters/default/home/suspension"

    async def refuses() -> bool:
        return (await two.client.post(CHAT, json={"model": "home"})).status_code == 503

    async def answers() -> bool:
        return not await refuses()

    for path in (suspension, "/admin/tenants/default/suspension"):
        assert (await one.client.put(path)).status_code == 200
        refused = await one.client.post(CHAT, json={"model": "home"})
        assert_error(refused, 503, "suspended")
        await until(refuses)
        assert (await one.client.delete(path)).status_code == 200
        await until(answers)


async def test_while_the_database_is_away(
    servers: list[Server], url: str, postgres: Postgres
) -> None:
    def reachable(server: Server, expected: bool) -> Callable[[], Awaitable[bool]]:
        async def check() -> bool:
            ready = await server.client.get("/readyz")
            assert ready.status_code == 200, ready.text
            return bool(ready.json()["registry"]["reachable"] is expected)

        return check

    with postgres.away(url):
        for server in servers:
            await until(reachable(server, False))
            assert await server.version() == "default/home@1"
            refused = await server.promote(2)
            assert_error(refused, 503, "registry_unavailable")
            assert int(refused.headers["retry-after"]) > 0
            scraped = (await server.client.get("/metrics")).text
            stale = next(x for x in scraped.splitlines() if x.startswith("loraplex_registry_stale"))
            assert float(stale.split()[1]) >= 0.5
            assert 'loraplex_registry_versions{state="ready"} 2.0' in scraped, "what is known"
    for server in servers:
        await until(reachable(server, True))
        assert await server.version() == "default/home@1", "what was refused didn't happen"
    assert (await servers[0].promote(2)).status_code == 200
    assert (
        'loraplex_registry_versions{state="ready"} 2'
        in (await servers[1].client.get("/metrics")).text
    )
