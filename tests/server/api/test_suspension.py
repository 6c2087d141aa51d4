"""Suspended adapters and tenants: refused on every route, by the registry's word, until resumed."""

from __future__ import annotations

import asyncio
from functools import partial
from shutil import copytree

import httpx
import pytest
from fastapi import FastAPI

from adapters_registry.records.access.sharing import share_adapter
from adapters_registry.records.access.suspension import resume_adapter, suspend_adapter
from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.tenants import create_tenant, resume_tenant, suspend_tenant
from adapters_registry.registry import Registry
from server.auth import Keys
from tests.server.answers import CHAT, assert_error
from tests.server.fake_engine import FakeEngine
from tests.tiny import AdapterFactory

HOME = "/admin/adapters/default/home"
ROUTES = (CHAT, "/v1/completions", "/v1/responses", "/v1/messages")


@pytest.fixture
def engine() -> FakeEngine:
    engine = FakeEngine()
    engine.endpoints = {**engine.endpoints, **dict.fromkeys(ROUTES, engine.endpoints[CHAT])}
    return engine


@pytest.fixture
def acme(registry: Registry, keys: Keys, home: VersionRecord) -> dict[str, str]:
    """The headers of a key of the tenant acme, with which `home` is shared."""
    registry.apply(create_tenant, "acme")
    registry.apply(share_adapter, "default", "home", ["acme"], False)
    return {"Authorization": f"Bearer {keys.create('acme', ['inference', 'adapters'])}"}


async def test_a_suspended_adapter_is_refused_on_every_route_until_it_is_resumed(
    client: httpx.AsyncClient, home: VersionRecord
) -> None:
    body = {"reason": "under review"}
    suspended = (await client.put(f"{HOME}/suspension", json=body)).json()["suspended"]
    assert (suspended["reason"], suspended["by_admin"]) == ("under review", True)
    for path in (*ROUTES, "/v1/messages/count_tokens"):
        for model in ("home", "default/home@1", "home@live", f"home@sha256:{home.digest}"):
            refused = await client.post(path, json={"model": model})
            error = assert_error(refused, 503, "suspended")
            assert error["param"] == "model"
            assert "default/home is suspended (under review)" in str(error["message"])
            assert refused.headers["x-should-retry"] == "false"
            assert (refused.json().get("type") == "error") == path.startswith("/v1/messages")
        assert (await client.post(path, json={"model": "base"})).status_code == 200
    card = (await client.get("/v1/models/home")).json()
    assert card["adapter"]["suspended"] is True
    assert (await client.delete(f"{HOME}/suspension")).json()["suspended"] is None
    for path in ROUTES:
        assert (await client.post(path, json={"model": "home"})).status_code == 200


async def test_running_answers_finish(
    client: httpx.AsyncClient, registry: Registry, home: VersionRecord, engine: FakeEngine
) -> None:
    body = {"model": "home", "stream": True}
    running = asyncio.create_task(client.post(CHAT, json=body))
    async with asyncio.timeout(30):
        while not engine.slots:
            await asyncio.sleep(0.001)
    registry.apply(suspend_adapter, "default", "home", by_admin=True)
    registry.apply(suspend_tenant, "default")
    engine.stream_may_end.set()
    answer = await running
    assert answer.status_code == 200
    assert answer.text.endswith("data: [DONE]\n\n")
    assert_error(await client.post(CHAT, json=body), 503, "suspended")


async def test_a_suspended_tenant_can_read_but_neither_ask_nor_change(
    client: httpx.AsyncClient, acme: dict[str, str]
) -> None:
    assert (await client.put("/admin/tenants/acme/suspension")).status_code == 200
    for path in ROUTES:
        for model in ("base", "default/home", "nothing"):
            refused = await client.post(path, json={"model": model}, headers=acme)
            assert_error(refused, 503, "suspended")
    # Refused before the body is read.
    assert_error(await client.post(CHAT, content=b"{", headers=acme), 503, "suspended")
    changed = await client.post("/admin/adapters", json={"name": "x"}, headers=acme)
    assert_error(changed, 503, "suspended")
    assert (await client.get("/admin/adapters", headers=acme)).status_code == 200
    assert (await client.post(CHAT, json={"model": "home"})).status_code == 200, "others go on"
    listed = (await client.get("/admin/tenants")).json()["data"]
    assert [t["name"] for t in listed if t["suspended"]] == ["acme"]
    await client.delete("/admin/tenants/acme/suspension")
    assert (await client.post(CHAT, json={"model": "base"}, headers=acme)).status_code == 200


async def test_an_owners_suspension_holds_for_those_it_shares_with_without_the_reason(
    client: httpx.AsyncClient, registry: Registry, acme: dict[str, str]
) -> None:
    registry.apply(suspend_tenant, "default", "unpaid")
    refused = await client.post(CHAT, json={"model": "default/home"}, headers=acme)
    assert "unpaid" not in str(assert_error(refused, 503, "suspended")["message"])
    assert (await client.post(CHAT, json={"model": "base"}, headers=acme)).status_code == 200
    refused = await client.post(CHAT, json={"model": "home"})
    assert "unpaid" in str(assert_error(refused, 503, "suspended")["message"])
    registry.apply(resume_tenant, "default")
    answer = await client.post(CHAT, json={"model": "default/home"}, headers=acme)
    assert answer.status_code == 200


async def test_what_an_admin_suspends_its_owner_cannot_resume(
    app: FastAPI, client: httpx.AsyncClient, keys: Keys, home: VersionRecord
) -> None:
    owner = {"Authorization": f"Bearer {keys.create('default', ['adapters'])}"}
    path = f"{HOME}/suspension"
    assert (await client.put(path, headers=owner)).json()["suspended"]["by_admin"] is False
    assert (await client.delete(path, headers=owner)).json()["suspended"] is None
    await client.put(path)
    assert_error(await client.delete(path, headers=owner), 409, "conflict")
    again = await client.put(path, headers=owner, json={"reason": "mine"})
    assert_error(again, 409, "conflict")
    assert (await client.delete(path)).json()["suspended"] is None


async def test_the_audit_trail_has_each_change_once(
    client: httpx.AsyncClient, home: VersionRecord
) -> None:
    for _ in range(2):
        await client.put(f"{HOME}/suspension", json={"reason": "a"})
    await client.put(f"{HOME}/suspension", json={"reason": "b"})
    for _ in range(2):
        await client.delete(f"{HOME}/suspension")
    trail = (await client.get("/admin/audit?subject=default/home")).json()["data"]
    assert [(e["action"], e["before"], e["after"]) for e in trail] == [
        ("adapter.resume", {"suspended": True, "reason": "b"}, {"suspended": False}),
        (
            "adapter.suspend",
            {"suspended": True, "reason": "a"},
            {"suspended": True, "reason": "b"},
        ),
        ("adapter.suspend", {"suspended": False}, {"suspended": True, "reason": "a"}),
    ]
    await client.put("/admin/tenants/default/suspension")
    await client.delete("/admin/tenants/default/suspension")
    trail = (await client.get("/admin/audit?subject=default")).json()["data"]
    assert [e["action"] for e in trail[:2]] == ["tenant.resume", "tenant.suspend"]


@pytest.mark.parametrize(
    "body", [{"reason": "x" * 201}, {"reason": "a\nb"}, {"reason": 3}, {"a": 1}]
)
async def test_bad_reasons(
    client: httpx.AsyncClient, home: VersionRecord, body: dict[str, object]
) -> None:
    for path in (f"{HOME}/suspension", "/admin/tenants/default/suspension"):
        assert_error(await client.put(path, json=body), 400, "invalid_request")


async def test_nothing_of_a_suspension_passes_on(
    client: httpx.AsyncClient, registry: Registry, keys: Keys
) -> None:
    registry.apply(create_tenant, "acme")
    registry.apply(suspend_tenant, "acme")
    await client.delete("/admin/tenants/acme")
    registry.apply(create_tenant, "acme")
    headers = {"Authorization": f"Bearer {keys.create('acme', ['inference'])}"}
    assert (await client.post(CHAT, json={"model": "base"}, headers=headers)).status_code == 200


async def test_what_is_not_there_cannot_be_suspended(client: httpx.AsyncClient) -> None:
    for path in ("/admin/adapters/default/nope/suspension", "/admin/tenants/nobody/suspension"):
        assert_error(await client.put(path), 404, "not_found")
        assert_error(await client.delete(path), 404, "not_found")


def test_it_is_known_after_a_restart(registry: Registry, home: VersionRecord) -> None:
    registry.apply(suspend_adapter, "default", "home", "why", by_admin=False)
    (known,) = [a for a in registry.catalog.adapters.values() if a.suspension]
    assert known.suspension is not None
    assert (known.suspension.reason, known.suspension.by_admin) == ("why", False)
    registry.apply(resume_adapter, "default", "home", by_admin=False)
    assert registry.get_adapter("default", "home").suspension is None


async def test_a_sum_with_a_suspended_part_is_refused(
    client: httpx.AsyncClient,
    registry: Registry,
    home: VersionRecord,
    make_adapter: AdapterFactory,
) -> None:
    stage = partial(copytree, make_adapter(seed=2), dirs_exist_ok=True)
    version, _ = registry.register("default", "second", "test", stage)
    registry.accept(version, registry.check_files(version))
    registry.apply(suspend_adapter, "default", "home", by_admin=True)
    refused = await client.post(CHAT, json={"model": "second*0.5+home*0.5"})
    assert "default/home is suspended" in str(assert_error(refused, 503, "suspended")["message"])
