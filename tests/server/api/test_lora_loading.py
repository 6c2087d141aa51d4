"""vLLM's routes to load and unload an adapter, as its clients and control planes ask for them."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from shutil import copytree

import httpx
import pytest

from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.tables import VersionState
from adapters_registry.records.tenants import create_tenant, suspend_tenant
from adapters_registry.registry import Registry
from server.auth import Keys
from server.middleware.authentication import LOADING_PATHS
from tests.server.answers import CHAT, assert_error
from tests.server.fake_engine import FakeEngine
from tests.tiny import AdapterFactory

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


async def load(
    client: httpx.AsyncClient, name: str, path: Path | str, **more: object
) -> httpx.Response:
    return await client.post(LOAD, json={"lora_name": name, "lora_path": str(path), **more})


async def answered_by(client: httpx.AsyncClient, model: str) -> str:
    response = await client.post(CHAT, json={"model": model})
    assert response.status_code == 200, response.text
    return str(response.json()["model"])


def states(registry: Registry) -> dict[int, VersionState]:
    return {v.number: v.state for v in registry.read_history("default", "policy")}


def with_key(keys: Keys, tenant: str, *scopes: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {keys.create(tenant, list(scopes))}"}


async def test_a_name_is_loaded_again_and_unloaded(
    client: httpx.AsyncClient, registry: Registry, make_adapter: AdapterFactory
) -> None:
    for number, more in ((1, {}), (2, {}), (3, {"load_inplace": True}), (4, {"surplus": 1})):
        loaded = await load(client, "policy", make_adapter(seed=number), **more)
        assert loaded.status_code == 200, loaded.text
        assert loaded.text == "Success: LoRA adapter 'policy' added successfully."
        assert await answered_by(client, "policy") == f"default/policy@{number}"
    retired, ready = VersionState.RETIRED, VersionState.READY
    assert states(registry) == {1: retired, 2: retired, 3: ready, 4: ready}
    gone = await client.post(UNLOAD, json={"lora_name": "policy", "lora_int_id": 7})
    assert gone.text == "Success: LoRA adapter 'policy' removed successfully."
    refused = await client.post(CHAT, json={"model": "policy"})
    assert_error(refused, 404, "model_not_found")
    again = await client.post(UNLOAD, json={"lora_name": "policy"})
    message = str(assert_error(again, 404, "model_not_found")["message"])
    assert message == "The lora adapter 'policy' cannot be found."
    await load(client, "policy", make_adapter(seed=9))
    assert await answered_by(client, "policy") == "default/policy@5", "numbers are never reused"


async def test_the_same_files_again_change_nothing(
    client: httpx.AsyncClient, registry: Registry, make_adapter: AdapterFactory
) -> None:
    one, two = make_adapter(seed=1), make_adapter(seed=2)
    for path, number in ((one, 1), (one, 1), (two, 2), (one, 1)):
        assert (await load(client, "policy", path)).status_code == 200
        assert await answered_by(client, "policy") == f"default/policy@{number}"
    assert len(states(registry)) == 2


async def test_in_place_retires_only_what_was_loaded_so_and_is_not_in_use(
    client: httpx.AsyncClient, registry: Registry, make_adapter: AdapterFactory
) -> None:
    stage = partial(copytree, make_adapter(seed=1), dirs_exist_ok=True)
    version, _ = registry.register("default", "policy", "test", stage)
    registry.accept(version, registry.check_files(version))
    for seed in (2, 3):
        await load(client, "policy", make_adapter(seed=seed))
    stable = {"targets": [{"version": 2}]}
    await client.put("/admin/adapters/default/policy/aliases/stable", json=stable)
    await load(client, "policy", make_adapter(seed=4), load_inplace=True)
    retired, ready = VersionState.RETIRED, VersionState.READY
    assert states(registry) == {1: ready, 2: ready, 3: retired, 4: ready}


async def test_running_answers_finish_on_their_own_weights(
    client: httpx.AsyncClient, engine: FakeEngine, make_adapter: AdapterFactory
) -> None:
    await load(client, "policy", make_adapter(seed=1))
    body = {"model": "policy", "stream": True}
    running = asyncio.create_task(client.post(CHAT, json=body))
    async with asyncio.timeout(30):
        while not engine.slots:
            await asyncio.sleep(0.001)
    await load(client, "policy", make_adapter(seed=2), load_inplace=True)
    assert await answered_by(client, "policy") == "default/policy@2"
    assert not running.done()
    engine.stream_may_end.set()
    assert "data: default/policy@1" in (await running).text


async def test_what_is_refused(
    client: httpx.AsyncClient, registry: Registry, make_adapter: AdapterFactory
) -> None:
    good = make_adapter()
    for name, path in (
        ("", good),
        ("policy", ""),
        ("base", good),
        ("Policy", good),
        ("policy", "/etc"),
        ("policy", good / "none"),
        ("policy", "ftp://x/y"),
    ):
        assert_error(await load(client, name, path), 400, "invalid_request")
    for config in ({"r": 3}, {"base_model_name_or_path": "other"}):
        refused = await load(client, "policy", make_adapter(config=config))
        assert assert_error(refused, 400, "adapter_rejected")["reasons"]
    assert_error(await load(client, "nobody/policy", good), 404, "not_found")
    for path in LOADING_PATHS:
        assert (await client.post(path, json={})).status_code == 400
        assert (await client.post(path, content=b"{")).status_code == 400
    assert "policy" not in [a.name for a in registry.catalog.adapters.values() if a.live]
    other = make_adapter(config={"base_model_name_or_path": "other"})
    assert (await load(client, "policy", other, allow_base_mismatch=True)).status_code == 200


async def test_who_may_load_and_unload(
    client: httpx.AsyncClient,
    registry: Registry,
    keys: Keys,
    home: VersionRecord,
    make_adapter: AdapterFactory,
) -> None:
    registry.apply(create_tenant, "acme")
    asks, manages = with_key(keys, "acme", "inference"), with_key(keys, "acme", "adapters")
    body = {"lora_name": "policy", "lora_path": str(make_adapter())}
    for path in LOADING_PATHS:
        refused = await client.post(path, json=body, headers=asks)
        assert_error(refused, 403, "insufficient_scope")
    # Only admins register from a source that the server reads.
    refused = await client.post(LOAD, json=body, headers=manages)
    assert_error(refused, 403, "insufficient_scope")
    told = []
    for name in ("default/home", "default/nothing"):
        foreign = await client.post(UNLOAD, json={"lora_name": name}, headers=manages)
        assert_error(foreign, 404, "model_not_found")
        told.append(foreign.text.replace(name, ""))
    assert told[0] == told[1]
    assert (await load(client, "acme/policy", make_adapter())).status_code == 200
    assert ("acme", "policy") in registry.catalog.adapters
    unloaded = await client.post(UNLOAD, json={"lora_name": "policy"}, headers=manages)
    assert unloaded.status_code == 200
    assert set(registry.catalog.adapters) == {("default", "home")}
    registry.apply(suspend_tenant, "acme")
    refused = await client.post(UNLOAD, json={"lora_name": "policy"}, headers=manages)
    assert_error(refused, 503, "suspended")


async def test_the_version_is_vllms(client: httpx.AsyncClient) -> None:
    versions = (await client.get("/version")).json()
    assert versions["version"].startswith("0.")
    assert versions["loraplex"]


@pytest.mark.parametrize("scope", ["inference", "adapters"])
async def test_the_version_needs_a_key(client: httpx.AsyncClient, keys: Keys, scope: str) -> None:
    assert (await client.get("/version", headers=with_key(keys, "default", scope))).is_success
    assert_error(
        await client.get("/version", headers={"Authorization": ""}), 401, "invalid_api_key"
    )
