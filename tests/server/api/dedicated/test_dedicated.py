"""A dedicated server beside the shared one, on the same registry: whose requests each answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from shutil import copytree

import httpx
import pytest
import pytest_asyncio

from adapters_registry.content.merged_model import MergedVersion
from adapters_registry.records.access.sharing import share_adapter
from adapters_registry.records.access.suspension import suspend_adapter
from adapters_registry.records.aliases import point_alias
from adapters_registry.records.catalog import Target, VersionRecord
from adapters_registry.records.retirement import pin_version, retire_version
from adapters_registry.records.tenants import create_tenant
from adapters_registry.registry import Registry
from adapters_registry.rollout import reports, warm
from adapters_registry.rollout.promotion import Warmth
from server.api.dedicated.dedicated import Dedicated
from server.app import Server, build_server
from server.auth import Keys
from server.residency.merged_leases import MergedLeases
from server.settings import Settings
from tests.server.answers import CHAT, assert_error
from tests.server.fake_engine import FakeEngine
from tests.tiny import AdapterFactory

ELSEWHERE = "x-loraplex-elsewhere"


@pytest.fixture
def merged(home: VersionRecord, registry: Registry) -> MergedVersion:
    base = registry.base
    return MergedVersion("default", "home", 1, home.digest, base.name, base.fingerprint)


@pytest.fixture
def own_engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def own_server(
    settings: Settings,
    registry: Registry,
    keys: Keys,
    own_engine: FakeEngine,
    merged: MergedVersion,
) -> Server:
    leases = MergedLeases(settings, own_engine, registry, merged)
    dedicated = Dedicated(merged, settings.served_base_name)
    return build_server(
        settings, registry, own_engine, keys=keys, leases=leases, dedicated=dedicated
    )


@pytest_asyncio.fixture
async def own_client(
    own_server: Server, client: httpx.AsyncClient
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the dedicated server, with the key of the shared server's."""
    transport = httpx.ASGITransport(own_server.app, raise_app_exceptions=False)
    headers = {"Authorization": client.headers["Authorization"]}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://dedicated", headers=headers
    ) as own:
        yield own


@pytest.fixture
def second(registry: Registry, home: VersionRecord, make_adapter: AdapterFactory) -> VersionRecord:
    stage = partial(copytree, make_adapter(seed=2), dirs_exist_ok=True)
    version, _ = registry.register("default", "home", "test", stage)
    return registry.accept(version, registry.check_files(version))


def point(registry: Registry, *targets: Target) -> None:
    registry.apply(point_alias, "default", "home", "live", targets)


async def ask(client: httpx.AsyncClient, model: str) -> httpx.Response:
    return await client.post(CHAT, json={"model": model})


async def routed(own: httpx.AsyncClient, shared: httpx.AsyncClient, model: str) -> str:
    """Who answers if a router asks the dedicated server first, as those in deploy/ do."""
    answer = await ask(own, model)
    if answer.status_code == 404:
        answer = await ask(shared, model)
    return str(answer.json()["model"])


async def test_the_adapters_names_are_answered_and_nothing_is_loaded(
    own_client: httpx.AsyncClient, own_engine: FakeEngine, home: VersionRecord
) -> None:
    for model in ("home", "default/home", "home@1", "home@live", f"home@sha256:{home.digest[:12]}"):
        answer = await ask(own_client, model)
        assert answer.json() == {"model": "default/home@1"}
        assert answer.headers["x-adapter-version"] == "1"
        assert answer.headers["x-adapter-tier"] == "slot"
    assert not own_engine.loads


@pytest.mark.parametrize(
    "model", ["base", "home*0.5+other", "hf://org/repo", "home@2", "other", "base:other"]
)
async def test_what_a_dedicated_server_does_not_have(
    own_client: httpx.AsyncClient,
    registry: Registry,
    make_adapter: AdapterFactory,
    second: VersionRecord,
    model: str,
) -> None:
    stage = partial(copytree, make_adapter(seed=3), dirs_exist_ok=True)
    version, _ = registry.register("default", "other", "test", stage)
    registry.accept(version, registry.check_files(version))
    answer = await ask(own_client, model)
    error = assert_error(answer, 404, "model_elsewhere")
    assert "default/home@1 only" in str(error["message"])
    assert answer.headers[ELSEWHERE] == "1", "proxies repeat it on a shared server"
    shown = await own_client.get(f"/v1/models/{model}")
    assert_error(shown, 404, "model_elsewhere")


async def test_no_answer_is_of_another_version_than_the_name_means(
    own_client: httpx.AsyncClient,
    client: httpx.AsyncClient,
    registry: Registry,
    second: VersionRecord,
) -> None:
    assert await routed(own_client, client, "home") == "default/home@1"
    point(registry, Target(2, 100))
    refused = await ask(own_client, "home")
    error = assert_error(refused, 404, "model_elsewhere")
    assert "'home' means default/home@2" in str(error["message"])
    assert await routed(own_client, client, "home") == "default/home@2"
    assert (await ask(own_client, "home@1")).json() == {"model": "default/home@1"}
    point(registry, Target(1, 100))
    assert (await ask(own_client, "home")).status_code == 200


async def test_a_split_is_drawn_by_the_shared_servers_alone(
    own_client: httpx.AsyncClient, registry: Registry, second: VersionRecord
) -> None:
    point(registry, Target(2, 1), Target(1, 99))
    answers = [await ask(own_client, "home") for _ in range(8)]
    assert {answer.status_code for answer in answers} == {404}
    assert "split" in answers[0].json()["error"]["message"]
    assert (await ask(own_client, "home@1")).status_code == 200


async def test_a_retired_version_is_not_answered(
    own_client: httpx.AsyncClient, registry: Registry, second: VersionRecord
) -> None:
    point(registry, Target(2, 100))
    registry.apply(retire_version, "default", "home", 1)
    for model in ("home", "home@1"):
        assert (await ask(own_client, model)).status_code == 404
    assert (await own_client.get("/v1/models")).json()["data"] == []


async def test_models_lists_the_one_that_it_has(
    own_client: httpx.AsyncClient, registry: Registry, second: VersionRecord
) -> None:
    (card,) = (await own_client.get("/v1/models")).json()["data"]
    assert (card["id"], card["root"]) == ("home", "default/home@1")
    assert (card["adapter"]["tier"], card["parent"]) == ("slot", "base")
    assert (await own_client.get("/v1/models/home")).json() == card
    point(registry, Target(2, 100))
    (card,) = (await own_client.get("/v1/models")).json()["data"]
    assert card["id"] == "home@1"


async def test_tenants_see_and_use_what_they_do_on_the_shared_server(
    own_client: httpx.AsyncClient, registry: Registry, keys: Keys, home: VersionRecord
) -> None:
    registry.apply(create_tenant, "acme")
    own_client.headers["Authorization"] = f"Bearer {keys.create('acme', ['inference'])}"
    assert (await own_client.get("/v1/models")).json()["data"] == []
    assert_error(await ask(own_client, "default/home"), 404, "model_not_found")
    error = assert_error(await ask(own_client, "base"), 404, "model_elsewhere")
    assert "home" not in str(error["message"]), "another tenant's adapters seem not to exist"
    registry.apply(share_adapter, "default", "home", ["acme"], False)
    assert (await ask(own_client, "default/home")).json() == {"model": "default/home@1"}
    registry.apply(suspend_adapter, "default", "home", by_admin=True)
    assert_error(await ask(own_client, "default/home"), 503, "suspended")


async def test_usage_is_the_adapters(
    own_client: httpx.AsyncClient,
    own_server: Server,
    client: httpx.AsyncClient,
    home: VersionRecord,
) -> None:
    await ask(own_client, "home")
    own_server.services.usage_buffer.save()
    (row,) = (await client.get("/admin/usage")).json()["data"]
    assert (row["adapter"], row["requests"]) == ("default/home", 1)


@pytest.mark.parametrize("path", ["/admin/adapters", "/console", "/v1/load_lora_adapter"])
async def test_the_registry_is_changed_on_shared_servers(
    own_client: httpx.AsyncClient, home: VersionRecord, path: str
) -> None:
    assert_error(await own_client.post(path, json={}), 404, "model_elsewhere")


async def test_pins_and_warm_promotions_load_nothing_and_wait_for_nothing(
    own_server: Server, own_engine: FakeEngine, registry: Registry, second: VersionRecord
) -> None:
    registry.apply(pin_version, "default", "home", 2, True)
    settings = own_server.services.settings
    promotion = registry.apply(
        warm.begin,
        "default",
        "home",
        "live",
        [Target(2, 100)],
        server="x",
        wait=settings.garbage_grace,
    )
    own_server.services.leases.follow(registry.catalog)
    own_engine.generation += 1
    await own_server.services.rollouts.tick()
    with registry.session() as session:
        said = reports.read_warmth(session, promotion.epoch)
    assert said[registry.server_id] is Warmth.UNUSED
    assert not own_engine.loads
