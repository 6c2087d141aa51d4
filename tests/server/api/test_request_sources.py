"""Models that requests name by their source, on the app and a stand-in of the hub."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from adapters_registry.content.adapter_files import ADAPTER_FILES, CONFIG_FILE
from adapters_registry.records.tenants import Quota, create_tenant, set_policy, set_quota
from adapters_registry.registry import Registry
from adapters_registry.sources.hub import find_on_hub
from adapters_registry.trust.policy import TenantPolicy
from adapters_registry.trust.sources import RequestedSource
from server.api.request_sources import MAX_PENDING, REFUSED_SECONDS
from server.app import build_server
from server.auth import Keys
from server.residency.leases import Leases
from server.settings import Settings
from tests.hub_server import HubServer
from tests.server.answers import CHAT, assert_error
from tests.server.fake_engine import FakeEngine
from tests.tiny import AdapterFactory

MODEL = "hf://acme/home@v2"
SHORT = pytest.mark.parametrize("wait_seconds", [0.02])
"""For tests of requests that don't wait until a registration has ended."""
NAME = RequestedSource.parse(MODEL).adapter_name


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    server = HubServer()
    monkeypatch.setattr(
        "adapters_registry.sources.find_on_hub",
        lambda source: find_on_hub(source, server.endpoint),
    )
    yield server
    server.stop()


@pytest.fixture
def push(hub: HubServer, make_adapter: AdapterFactory) -> Callable[..., str]:
    def push(repository: str = "acme/home", branch: str = "v2", seed: int = 0) -> str:
        adapter = make_adapter(seed=seed)
        files = {name: (adapter / name).read_bytes() for name in ADAPTER_FILES}
        return hub.push(repository, files, branch)

    return push


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def wait_seconds() -> float:
    return 60


@pytest.fixture
def app(
    registry: Registry,
    keys: Keys,
    engine: FakeEngine,
    leases: Leases,
    tmp_path: Path,
    clock: Clock,
    wait_seconds: float,
) -> FastAPI:
    settings = Settings(
        data_dir=tmp_path, max_loras=4, max_adapter_mib=1, source_wait_seconds=wait_seconds
    )
    return build_server(settings, registry, engine, keys=keys, leases=leases, clock=clock).app


@pytest_asyncio.fixture
async def tenant(app: FastAPI, registry: Registry, keys: Keys) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the tenant acme, whose requests may name what acme has on the hub."""
    registry.apply(create_tenant, "acme")
    registry.apply(set_policy, "acme", TenantPolicy(sources=("hf://acme/*",)))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False),
        base_url="http://loraplex",
        headers={"Authorization": f"Bearer {keys.create('acme', ['inference'])}"},
    ) as client:
        yield client


async def ready(client: httpx.AsyncClient, model: str = MODEL) -> httpx.Response:
    """Ask again until the answer is no 503."""
    while (response := await ask(client, model)).status_code == 503:
        await asyncio.sleep(0.01)
    return response


async def ask(client: httpx.AsyncClient, model: str = MODEL) -> httpx.Response:
    return await client.post(CHAT, json={"model": model})


async def test_the_first_request_registers_and_later_ones_use_the_version(
    tenant: httpx.AsyncClient, hub: HubServer, push: Callable[..., str], registry: Registry
) -> None:
    commit = push()
    answers = await asyncio.gather(*(ask(tenant) for _ in range(5)))
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.headers["x-adapter-id"] for answer in answers} == {f"acme/{NAME}"}
    (version,) = registry.catalog.adapters[("acme", NAME)].versions.values()
    assert version.source == f"hf://acme/home@{commit}"
    assert version.metadata["requested_as"] == MODEL
    asked = len(hub.requests)
    push(seed=1)  # the branch moves: what was resolved stays
    assert (await ask(tenant)).headers["x-adapter-version"] == "1"
    assert len(hub.requests) == asked, "nothing was fetched again"
    pinned = await ask(tenant, f"hf://acme/home@{commit}")
    assert pinned.headers["x-adapter-version"] == "1", "the same content is the same version"
    assert len(registry.audit(action="version.register")) == 1
    assert (await ask(tenant, f"{NAME}@v2")).status_code == 200
    listed = [model["id"] for model in (await tenant.get("/v1/models")).json()["data"]]
    assert listed == ["base", NAME]


async def test_another_revision_is_another_version(
    tenant: httpx.AsyncClient, push: Callable[..., str]
) -> None:
    push()
    push(branch="main", seed=1)
    assert (await ask(tenant)).headers["x-adapter-version"] == "1"
    assert (await ask(tenant, "hf://acme/home")).headers["x-adapter-version"] == "2"
    assert (await ask(tenant)).headers["x-adapter-version"] == "1"


async def test_sources_outside_the_policy_cost_nothing(
    tenant: httpx.AsyncClient,
    client: httpx.AsyncClient,
    hub: HubServer,
    push: Callable[..., str],
    registry: Registry,
) -> None:
    push()
    push("other/home")
    for asker, model in ((tenant, "hf://other/home@v2"), (client, MODEL)):
        error = assert_error(await ask(asker, model), 403, "source_not_allowed")
        assert error["param"] == "model"
        assert "--source" in str(error["message"])
    for model in ("hf://acme/../other/home", "hf://acme/home@a@b", "hf://acme/%2e%2e/other"):
        assert_error(await ask(tenant, model), 400, "invalid_request")
    assert not hub.requests
    assert not registry.catalog.adapters
    await ask(tenant)
    assert_error(await ask(client, f"acme/{NAME}x"), 404, "model_not_found")
    registry.apply(set_policy, "acme", TenantPolicy())
    assert_error(await ask(tenant), 403, "source_not_allowed")


async def test_what_is_not_there_is_asked_for_once_a_minute(
    tenant: httpx.AsyncClient, hub: HubServer, push: Callable[..., str], clock: Clock
) -> None:
    for _ in range(3):
        error = assert_error(await ask(tenant), 404, "model_not_found")
        assert "no such repository" in str(error["message"])
    assert len(hub.requests) == 1
    push()
    assert_error(await ask(tenant), 404, "model_not_found")
    clock.seconds += REFUSED_SECONDS
    assert (await ask(tenant)).status_code == 200


async def test_a_rejected_adapter_says_why(
    tenant: httpx.AsyncClient, hub: HubServer, make_adapter: AdapterFactory, registry: Registry
) -> None:
    adapter = make_adapter(rank=16)  # over the tiny base's limit
    hub.push("acme/home", {n: (adapter / n).read_bytes() for n in ADAPTER_FILES}, "v2")
    for _ in range(2):
        assert_error(await ask(tenant), 422, "adapter_rejected")
    assert len(registry.audit(action="version.register")) == 1
    assert not registry.catalog.adapters[("acme", NAME)].ready


@SHORT
async def test_a_request_does_not_wait_for_ever(
    tenant: httpx.AsyncClient, client: httpx.AsyncClient, hub: HubServer, push: Callable[..., str]
) -> None:
    """The first one gets a 503 while others are served, and a later one finds the version."""
    push()
    release = hold(hub)
    response = await ask(tenant)
    error = assert_error(response, 503, "source_pending")
    assert "it goes on without this request" in str(error["message"])
    assert response.headers["retry-after"]
    assert (await ask(client, "base")).status_code == 200
    assert (await ask(tenant, "base")).status_code == 200
    release.set()
    assert (await ready(tenant)).status_code == 200


@SHORT
async def test_a_tenant_registers_a_few_at_a_time(
    tenant: httpx.AsyncClient, hub: HubServer
) -> None:
    release = hold(hub)
    for number in range(MAX_PENDING):
        assert_error(await ask(tenant, f"hf://acme/r{number}"), 503, "source_pending")
    response = await ask(tenant, "hf://acme/one-more")
    assert_error(response, 429, "rate_limit_exceeded")
    assert response.headers["retry-after"]
    assert_error(await ask(tenant, "hf://acme/r0"), 503, "source_pending")
    release.set()
    for number in range(MAX_PENDING):
        assert (await ready(tenant, f"hf://acme/r{number}")).status_code == 404
    assert (await ready(tenant, "hf://acme/one-more")).status_code == 404


def hold(hub: HubServer) -> asyncio.Event:
    """Let the hub answer nothing until the event is set."""
    loop, release = asyncio.get_running_loop(), asyncio.Event()

    def wait(_: str) -> None:
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result()

    hub.before_answer = wait
    return release


async def test_the_tenants_quota_holds(
    tenant: httpx.AsyncClient, push: Callable[..., str], registry: Registry
) -> None:
    registry.apply(set_quota, "acme", Quota(adapters=1))
    push()
    push("acme/other")
    assert (await ask(tenant)).status_code == 200
    assert_error(await ask(tenant, "hf://acme/other@v2"), 429, "insufficient_quota")
    assert (await ask(tenant)).status_code == 200


async def test_a_version_that_was_retired_is_registered_again(
    tenant: httpx.AsyncClient, client: httpx.AsyncClient, push: Callable[..., str]
) -> None:
    push()
    await ask(tenant)
    path = f"/admin/adapters/acme/{NAME}/versions/1"
    assert (await client.delete(path)).status_code == 409
    assert (await client.delete(f"{path}?force=true")).status_code == 204
    assert (await ask(tenant)).headers["x-adapter-version"] == "2"


async def test_a_request_whose_client_goes_away_leaves_the_registration_alone(
    tenant: httpx.AsyncClient, hub: HubServer, push: Callable[..., str]
) -> None:
    push()
    release = hold(hub)
    request = asyncio.create_task(ask(tenant))
    while not hub.requests:
        await asyncio.sleep(0.01)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    release.set()
    assert (await ask(tenant)).status_code == 200
    read = [each for each in hub.requests if each.startswith("GET ") and "/resolve/" in each]
    assert len(read) == len(ADAPTER_FILES), "once each"


async def test_a_version_that_the_engine_refuses_is_tried_again_later(
    tenant: httpx.AsyncClient, push: Callable[..., str], engine: FakeEngine, clock: Clock
) -> None:
    push()
    engine.fails_to_load.add(f"acme/{NAME}@1")
    assert_error(await ask(tenant), 422, "adapter_rejected")
    clock.seconds += REFUSED_SECONDS
    assert (await ask(tenant)).headers["x-adapter-version"] == "2"


async def test_files_that_are_missing(
    tenant: httpx.AsyncClient, hub: HubServer, make_adapter: AdapterFactory
) -> None:
    hub.push("acme/home", {CONFIG_FILE: (make_adapter() / CONFIG_FILE).read_bytes()}, "v2")
    error = assert_error(await ask(tenant), 404, "model_not_found")
    assert "adapter_model.safetensors is missing" in str(error["message"])
