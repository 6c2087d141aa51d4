"""Compositions that requests name: made once, kept for a while, within a quota."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from shutil import copytree
from typing import Any

import httpx
import numpy as np
import openai.types
import pytest
import pytest_asyncio
from fastapi import FastAPI
from safetensors.numpy import load_file

from adapters_registry.collection import Collector
from adapters_registry.composition.keeping import note_use
from adapters_registry.composition.metadata import used_at
from adapters_registry.content.adapter_files import WEIGHTS_FILE
from adapters_registry.records.access.sharing import share_adapter
from adapters_registry.records.retirement import pin_version
from adapters_registry.records.tables import now
from adapters_registry.records.tenants import Quota, create_tenant, set_quota
from adapters_registry.registry import Registry
from server.auth import Keys
from tests.adapter_recipe import A, B
from tests.adapters_registry.adapters import register
from tests.server.answers import CHAT, assert_error
from tests.server.fake_engine import FakeEngine
from tests.tiny import AdapterFactory

BOTH = "style*0.7+domain*0.3"
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def parts(registry: Registry, make_adapter: AdapterFactory) -> None:
    register(registry, make_adapter(seed=1, rank=3), name="style")
    register(registry, make_adapter(seed=2), name="domain")


@pytest_asyncio.fixture
async def acme(
    app: FastAPI, registry: Registry, keys: Keys, make_adapter: AdapterFactory
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of another tenant, which has an adapter `own` and may only ask."""
    registry.apply(create_tenant, "acme")
    stage = partial(copytree, make_adapter(seed=7), dirs_exist_ok=True)
    version, _ = registry.register("acme", "own", "test", stage)
    registry.accept(version, registry.check_files(version))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {keys.create('acme', ['inference'])}"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://loraplex", headers=headers
    ) as client:
        yield client


async def ask(client: httpx.AsyncClient, model: str, **fields: Any) -> httpx.Response:
    return await client.post(CHAT, json={"model": model, **fields})


async def test_the_first_request_makes_it_and_all_get_it(
    client: httpx.AsyncClient, registry: Registry, engine: FakeEngine
) -> None:
    first = await ask(client, BOTH)
    assert first.json() == {"model": "default/composed@1"}
    assert first.headers["x-adapter-id"] == "default/composed"
    version = registry.get_version("default", "composed", 1)
    path = registry.content.path
    sums = {
        name: (lambda t, scale: t[B] @ t[A] * scale)(load_file(path(digest) / WEIGHTS_FILE), scale)
        for name, digest, scale in (
            ("both", version.digest, 1),
            ("style", registry.get_version("default", "style", 1).digest, 4 / 2 * 2 / 3),
            ("domain", registry.get_version("default", "domain", 1).digest, 4 / 2),
        )
    }
    np.testing.assert_allclose(sums["both"], 0.7 * sums["style"] + 0.3 * sums["domain"], atol=1e-6)
    for same in (BOTH, "domain@1*0.3+default/style*0.70", "style*0.3+domain*0.3+style*0.4"):
        assert (await ask(client, same)).json() == {"model": "default/composed@1"}
    assert engine.loads.count("default/composed@1") <= 2, "once for the gate, once for requests"
    other = await ask(client, "style*0.7+domain*0.4")
    assert other.json() == {"model": "default/composed@2"}
    # It is a version like any other, but has no bare name and is in no list of models.
    assert (await ask(client, "composed@1")).json() == {"model": "default/composed@1"}
    assert_error(await ask(client, "composed"), 404, "model_not_found")
    models = (await client.get("/v1/models")).json()["data"]
    assert {card["id"] for card in models} == {"base", "style", "domain"}
    trail = (await client.get("/admin/audit?tenant=default")).json()["data"]
    made = next(entry for entry in trail if entry["subject"] == "default/composed@1")
    assert made["actor"] != "server", "the request's key"


async def test_a_model_that_is_a_sum_is_shown_before_and_after_it_is_made(
    client: httpx.AsyncClient, registry: Registry
) -> None:
    path = f"/v1/models/{BOTH}"
    before = (await client.get(path)).json()
    assert (before["id"], before["root"], before["parent"]) == (BOTH, None, "base")
    parts = sorted(before["adapter"]["parts"], key=lambda part: part["weight"])
    assert [part["model"] for part in parts] == ["default/domain@1", "default/style@1"]
    assert [part["weight"] for part in parts] == [0.3, 0.7]
    assert (before["adapter"]["version"], before["adapter"]["state"]) == (None, None)
    assert ("default", "composed") not in registry.catalog.adapters, "looking makes nothing"
    await ask(client, BOTH)
    after = (await client.get(path)).json()
    assert (after["id"], after["root"]) == (BOTH, "default/composed@1")
    assert (after["adapter"]["version"], after["adapter"]["state"]) == (1, "ready")
    assert after["adapter"].keys() == before["adapter"].keys()
    openai.types.Model.model_validate(before)
    assert_error(await client.get("/v1/models/style*0.7+nope"), 404, "model_not_found")
    assert_error(await client.get("/v1/models/style*x"), 400, "invalid_request")


async def test_requests_at_a_time_make_one(client: httpx.AsyncClient, registry: Registry) -> None:
    answers = await asyncio.gather(*(ask(client, BOTH) for _ in range(6)))
    assert {answer.json()["model"] for answer in answers} == {"default/composed@1"}
    assert registry.get_adapter("default", "composed").num_versions == 1


async def test_a_client_that_goes_away_ends_nobody_elses(
    client: httpx.AsyncClient, registry: Registry
) -> None:
    gone = asyncio.create_task(ask(client, BOTH))
    await asyncio.sleep(0.05)
    waiting = asyncio.create_task(ask(client, BOTH))
    await asyncio.sleep(0)
    gone.cancel()
    assert (await waiting).json() == {"model": "default/composed@1"}


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("style*0.5+nothing*0.5", 404, "model_not_found"),
        ("style*0.5+style@9*0.5", 404, "model_not_found"),
        ("style*nan", 400, "invalid_request"),
        ("style*0", 400, "invalid_request"),
        ("style*101", 400, "invalid_request"),
        ("style*0.5+style*-0.5", 400, "invalid_request"),
        ("base*0.5+style", 400, "invalid_request"),
        ("+".join(["style"] * 9), 400, "invalid_request"),
        ("style*0.1+" * 200, 400, "invalid_request"),
    ],
)
async def test_what_is_refused_before_anything_is_held(
    client: httpx.AsyncClient,
    registry: Registry,
    engine: FakeEngine,
    model: str,
    status: int,
    code: str,
) -> None:
    registry.apply(set_quota, "default", Quota(requests_per_minute=1))
    for _ in range(3):  # none of them counts towards the quota
        error = assert_error(await ask(client, model), status, code)
        assert error["param"] == "model"
    assert (await ask(client, "style")).status_code == 200
    assert set(engine.loads) == {"default/style@1"}
    assert ("default", "composed") not in registry.catalog.adapters


async def test_a_sum_of_too_large_a_rank(
    client: httpx.AsyncClient, registry: Registry, make_adapter: AdapterFactory
) -> None:
    register(registry, make_adapter(seed=3, rank=6), name="large")
    error = assert_error(await ask(client, "large+style"), 400, "invalid_request")
    assert error["param"] == "model"
    assert "add up to 9" in str(error["message"])


async def test_what_the_gate_refuses_is_not_made_again(
    client: httpx.AsyncClient, registry: Registry
) -> None:
    for _ in range(3):
        error = assert_error(await ask(client, "style*100"), 422, "adapter_rejected")
        assert error["reasons"][0]["code"] == "too_large"  # type: ignore[index]
    assert registry.get_adapter("default", "composed").num_versions == 1


class TestTenants:
    """Each has its own compositions, of what it may use."""

    async def test_foreign_parts_do_not_exist(
        self, acme: httpx.AsyncClient, registry: Registry
    ) -> None:
        there = await ask(acme, "own*0.5+default/style*0.5")
        absent = await ask(acme, "own*0.5+default/nope0*0.5")
        assert_error(there, 404, "model_not_found")
        assert there.text.replace("style", "nope0") == absent.text
        assert_error(await ask(acme, "own*0.5+style*0.5"), 404, "model_not_found")
        registry.apply(share_adapter, "default", "style", ["acme"], False)
        made = await ask(acme, "own*0.5+default/style*0.5")
        assert made.json() == {"model": "acme/composed@1"}
        registry.apply(share_adapter, "default", "style", [], False)
        assert_error(await ask(acme, "own*0.5+default/style*0.5"), 404, "model_not_found")
        assert (await ask(acme, "composed@1")).status_code == 200
        Collector(registry, HOUR, HOUR).collect(now())
        assert_error(await ask(acme, "composed@1"), 404, "model_not_found")

    async def test_the_quota(
        self, acme: httpx.AsyncClient, client: httpx.AsyncClient, registry: Registry
    ) -> None:
        registry.apply(set_quota, "acme", Quota(compositions=2))
        for weight in ("0.1", "0.2", "0.1"):
            assert (await ask(acme, f"own*{weight}")).status_code == 200
        error = assert_error(await ask(acme, "own*0.3"), 429, "insufficient_quota")
        assert "2 compositions" in str(error["message"])
        assert (await ask(acme, "own*0.2")).status_code == 200
        assert (await ask(client, BOTH)).status_code == 200, "another tenant's"
        registry.apply(set_quota, "acme", Quota(compositions=0))
        assert_error(await ask(acme, "own*0.4"), 429, "insufficient_quota")
        registry.apply(set_quota, "acme", Quota(compositions=8, versions=3))
        assert_error(await ask(acme, "own*0.5"), 429, "insufficient_quota")

    async def test_the_quota_counts_what_is_being_made(
        self, acme: httpx.AsyncClient, registry: Registry
    ) -> None:
        registry.apply(set_quota, "acme", Quota(compositions=2))
        answers = await asyncio.gather(*(ask(acme, f"own*0.{n}") for n in range(1, 5)))
        assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429]


async def test_an_adapter_of_ones_own_with_that_name(
    client: httpx.AsyncClient, registry: Registry, make_adapter: AdapterFactory
) -> None:
    register(registry, make_adapter(seed=5), name="composed")
    assert_error(await ask(client, BOTH), 409, "conflict")
    assert (await ask(client, "composed")).status_code == 200


class TestKeeping:
    """Nobody has to remove them."""

    async def test_unused_ones_are_retired_and_made_again(
        self, client: httpx.AsyncClient, registry: Registry
    ) -> None:
        collector = Collector(registry, timedelta(0), 48 * HOUR, HOUR)
        await ask(client, BOTH)
        collector.collect(now() + 0.9 * HOUR)
        assert (await ask(client, BOTH)).json() == {"model": "default/composed@1"}
        collector.collect(now() + 1.1 * HOUR)
        assert registry.get_version("default", "composed", 1).state == "retired"
        assert (await ask(client, BOTH)).json() == {"model": "default/composed@2"}
        for model in ("style", "domain"):
            assert (await ask(client, model)).status_code == 200

    async def test_use_is_recorded_now_and_then(
        self, client: httpx.AsyncClient, registry: Registry
    ) -> None:
        await ask(client, BOTH)
        version = registry.get_version("default", "composed", 1)
        registry.apply(note_use, version.version_id, now() - 0.5 * HOUR)
        before, epoch = now(), registry.catalog.epoch
        await asyncio.gather(*(ask(client, BOTH) for _ in range(5)))
        async with asyncio.timeout(5):
            while registry.catalog.epoch == epoch:
                await asyncio.sleep(0.01)
        await ask(client, BOTH)
        await asyncio.sleep(0.05)
        used = used_at(registry.get_version("default", "composed", 1).metadata)
        assert used is not None
        assert used >= before
        assert registry.catalog.epoch == epoch + 1, "one of six requests"

    async def test_those_in_service_stay(
        self, client: httpx.AsyncClient, registry: Registry
    ) -> None:
        for weight in ("0.1", "0.2", "0.3"):
            await ask(client, f"style*{weight}")
        registry.apply(pin_version, "default", "composed", 1, True)
        url = "/admin/adapters/default/composed/aliases/mine"
        await client.put(url, json={"targets": [{"version": 2}]})
        Collector(registry, HOUR, HOUR, HOUR).collect(now() + 2 * HOUR)
        assert set(registry.get_adapter("default", "composed").ready) == {1, 2}

    async def test_their_records_end_too(
        self, client: httpx.AsyncClient, registry: Registry
    ) -> None:
        await ask(client, "style*0.5")
        await ask(client, "style*0.6")
        collector = Collector(registry, timedelta(0), HOUR, HOUR)
        collector.collect(now() + 2 * HOUR)
        collector.collect(now() + 4 * HOUR)
        assert registry.read_history("default", "composed") == []
        assert (await ask(client, "style*0.5")).json() == {"model": "default/composed@3"}

    async def test_compositions_by_the_route_stay(
        self, client: httpx.AsyncClient, registry: Registry
    ) -> None:
        body = {"parts": [{"model": "style", "weight": 0.5}]}
        await client.post("/admin/adapters/default/half/compose?wait=true", json=body)
        Collector(registry, HOUR, HOUR, HOUR).collect(now() + 10 * HOUR)
        assert registry.get_version("default", "half", 1).state == "ready"
