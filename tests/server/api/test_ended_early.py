"""Requests that are ended: because another tenant waits, or because they ran as long as one may."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

import httpx
import pytest
import pytest_asyncio
from prometheus_client import REGISTRY

from adapters_registry.records.tenants import create_tenant
from adapters_registry.registry import Registry
from server.app import build_server
from server.auth import Keys
from server.settings import Settings
from tests.server.answers import CHAT, assert_error
from tests.server.fake_engine import FakeEngine
from tests.tiny import AdapterFactory

NUM_SLOTS = 2
Site = Callable[..., Callable[[str], httpx.AsyncClient]]


@pytest_asyncio.fixture
async def site(
    registry: Registry,
    engine: FakeEngine,
    keys: Keys,
    make_adapter: AdapterFactory,
    tmp_path: Path,
) -> AsyncIterator[Site]:
    """Makes a server with settings; that makes clients, each of a tenant with adapters."""
    clients: list[httpx.AsyncClient] = []
    for tenant, number in (("hog", 3), ("calm", 1)):
        registry.apply(create_tenant, tenant)
        for each in range(number):
            adapter = make_adapter(seed=10 * len(tenant) + each)
            stage = partial(copytree, adapter, dirs_exist_ok=True)
            version, _ = registry.register(tenant, f"a{each}", "test", stage)
            registry.accept(version, registry.check_files(version))

    def serve(**options: Any) -> Callable[[str], httpx.AsyncClient]:
        settings = Settings(data_dir=tmp_path, max_loras=NUM_SLOTS, **options)
        app = build_server(settings, registry, engine, keys=keys).app
        engine.max_loras = NUM_SLOTS

        def client_of(tenant: str) -> httpx.AsyncClient:
            key = keys.create(tenant, ["inference"])
            transport = httpx.ASGITransport(app)
            headers = {"Authorization": f"Bearer {key}"}
            clients.append(
                httpx.AsyncClient(transport=transport, base_url="http://x", headers=headers)
            )
            return clients[-1]

        return client_of

    yield serve
    for client in clients:
        await client.aclose()


def num_ended(tenant: str, reason: str) -> float:
    labels = {"tenant": tenant, "reason": reason}
    return REGISTRY.get_sample_value("loraplex_ended_early_total", labels) or 0


async def test_an_endless_stream_beyond_its_share_ends_for_another_tenant(
    site: Site, engine: FakeEngine
) -> None:
    client_of = site(preempt_seconds=0.2)
    hog, calm = client_of("hog"), client_of("calm")
    before = num_ended("hog", "preempted")
    streams = [
        asyncio.create_task(hog.post(CHAT, json={"model": f"a{n}", "stream": True}))
        for n in range(NUM_SLOTS)
    ]
    async with asyncio.timeout(20):
        while len(engine.slots) < NUM_SLOTS:
            await asyncio.sleep(0.01)
        answer = await calm.post(CHAT, json={"model": "a0"})
    assert answer.json() == {"model": "calm/a0@1"}
    ended = await streams[0]
    assert ended.text.split("\n\n")[:3] == ["data: hog/a0@1", "data: preempted", "data: [DONE]"]
    assert not streams[1].done(), "one slot is enough"
    assert num_ended("hog", "preempted") == before + 1
    engine.stream_may_end.set()
    assert "preempted" not in (await streams[1]).text


@pytest.mark.parametrize("model", ["base", "a0"])
async def test_a_request_that_runs_for_too_long_ends(site: Site, model: str) -> None:
    calm = site(request_seconds=0.1)("calm")
    async with asyncio.timeout(20):
        stream = await calm.post(CHAT, json={"model": model, "stream": True})
    assert "data: request_timeout" in stream.text
    assert num_ended("calm", "request_timeout")
    short = await calm.post(CHAT, json={"model": model})
    assert short.status_code == 200


async def test_an_unstreamed_request_that_runs_for_too_long_gets_the_error_itself(
    site: Site, engine: FakeEngine
) -> None:
    calm = site(request_seconds=0.1)("calm")
    engine.hangs = True
    async with asyncio.timeout(20):
        answer = await calm.post(CHAT, json={"model": "base"})
        assert_error(answer, 504, "request_timeout")
        assert answer.headers["x-should-retry"] == "false"
        answer = await calm.post("/v1/messages", json={"model": "base"})
    assert answer.json()["error"]["type"] == "timeout_error"
