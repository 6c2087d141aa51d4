"""Tenants and keys over HTTP."""

from datetime import timedelta

import httpx
import pytest

from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.tables import now
from server.auth import Keys
from tests.server.answers import CHAT, assert_error
from tests.tiny import AdapterFactory


async def test_tenants_come_and_go(client: httpx.AsyncClient) -> None:
    made = await client.post("/admin/tenants", json={"name": "acme"})
    assert (made.status_code, made.json()["num_adapters"]) == (201, 0)
    again = await client.post("/admin/tenants", json={"name": "acme"})
    assert_error(again, 409, "conflict")
    assert (await client.get("/admin/tenants/acme")).json() == made.json()
    listed = (await client.get("/admin/tenants?limit=1")).json()
    assert ([t["name"] for t in listed["data"]], listed["next"]) == (["acme"], "acme")
    rest = (await client.get("/admin/tenants?after=acme")).json()
    assert ([t["name"] for t in rest["data"]], rest["next"]) == (["default"], None)
    assert (await client.delete("/admin/tenants/acme")).status_code == 204
    assert_error(await client.get("/admin/tenants/acme"), 404, "not_found")
    assert_error(await client.delete("/admin/tenants/acme"), 404, "not_found")


async def test_a_tenant_with_adapters_stays(client: httpx.AsyncClient, home: VersionRecord) -> None:
    await client.post("/admin/tenants", json={"name": "acme"})
    assert_error(await client.delete("/admin/tenants/default"), 409, "conflict")
    assert (await client.get("/admin/tenants/default")).json()["num_adapters"] == 1


@pytest.mark.parametrize("body", [{}, {"name": "A b"}, {"name": 3}, {"name": "a", "x": 1}, []])
async def test_bad_tenants(client: httpx.AsyncClient, body: object) -> None:
    assert_error(await client.post("/admin/tenants", json=body), 400, "invalid_request")


async def test_a_key_is_made_shown_once_used_and_revoked(client: httpx.AsyncClient) -> None:
    made = await client.post("/admin/keys", json={"tenant": "default", "label": "ci"})
    key = made.json()
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    assert key["scopes"] == ["inference"]
    presented = {"Authorization": f"Bearer   {key['key']} "}
    answer = await client.post(CHAT, json={"model": "base"}, headers=presented)
    assert answer.status_code == 200
    listed = await client.get("/admin/keys?tenant=default")
    assert key["key"].split("-", 2)[2] not in listed.text
    (row,) = [row for row in listed.json()["data"] if row["id"] == key["id"]]
    assert row["label"] == "ci"
    assert row["last_used_at"] is not None
    assert (await client.delete(f"/admin/keys/{key['id']}")).status_code == 204
    answer = await client.post(CHAT, json={"model": "base"}, headers=presented)
    assert_error(answer, 401, "invalid_api_key")
    assert_error(await client.delete("/admin/keys/none"), 404, "not_found")


async def test_a_key_is_rotated(client: httpx.AsyncClient) -> None:
    body = {"tenant": "default", "scopes": ["inference"], "label": "web"}
    old = (await client.post("/admin/keys", json=body)).json()
    once = {"Idempotency-Key": "rotate"}
    path = f"/admin/keys/{old['id']}/rotate"
    rotated = await client.post(path, json={"overlap_seconds": 3600}, headers=once)
    new = rotated.json()
    assert (rotated.status_code, rotated.headers["cache-control"]) == (201, "no-store")
    assert (new["label"], new["scopes"], new["replaces"]) == ("web", ["inference"], old["id"])
    assert new["replaced_until"] is not None
    for key in (old["key"], new["key"]):
        headers = {"Authorization": f"Bearer {key}"}
        answer = await client.post(CHAT, json={"model": "base"}, headers=headers)
        assert answer.status_code == 200
    again = await client.post(path, json={"overlap_seconds": 3600}, headers=once)
    assert new["id"] in str(assert_error(again, 409, "conflict")["message"])
    assert_error(await client.post(path), 409, "conflict")
    rows = {row["id"]: row for row in (await client.get("/admin/keys")).json()["data"]}
    assert rows[old["id"]]["replaced_by"] == new["id"]
    now_ended = f"/admin/keys/{new['id']}/rotate"
    assert (await client.post(now_ended, json={"overlap_seconds": 0})).status_code == 201
    headers = {"Authorization": f"Bearer {new['key']}"}
    answer = await client.post(CHAT, json={"model": "base"}, headers=headers)
    assert_error(answer, 401, "invalid_api_key")
    assert_error(await client.post("/admin/keys/none/rotate"), 404, "not_found")


@pytest.mark.parametrize(
    "bad",
    [
        {"overlap_seconds": -1},
        {"overlap_seconds": 31 * 86400},
        {"overlap_seconds": "long"},
        {"expires_at": "2020-01-01T00:00:00Z"},
        {"surplus": 1},
    ],
)
async def test_bad_rotations(client: httpx.AsyncClient, bad: dict[str, object]) -> None:
    key = (await client.post("/admin/keys", json={"tenant": "default"})).json()
    response = await client.post(f"/admin/keys/{key['id']}/rotate", json=bad)
    assert response.status_code == 400
    (row,) = [r for r in (await client.get("/admin/keys")).json()["data"] if r["id"] == key["id"]]
    assert (row["expires_at"], row["replaced_by"]) == (None, None)


async def test_keys_by_pages(client: httpx.AsyncClient) -> None:
    for label in "abc":
        await client.post("/admin/keys", json={"tenant": "default", "label": label})
    labels: list[str] = []
    after: str | None = ""
    while after is not None:
        page = (await client.get(f"/admin/keys?limit=2&after={after}")).json()
        labels += [key["label"] for key in page["data"]]
        after = page["next"]
    assert sorted(labels) == ["", "a", "b", "c"]


@pytest.mark.parametrize(
    "bad",
    [
        {"tenant": 1},
        {"scopes": []},
        {"scopes": ["root"]},
        {"scopes": "inference"},
        {"expires_at": "2020-01-01T00:00:00Z"},
        {"expires_at": "2999-01-01T00:00:00"},
        {"expires_at": "soon"},
        {"label": "x" * 65},
        {"surplus": 1},
    ],
)
async def test_bad_keys(client: httpx.AsyncClient, bad: dict[str, object]) -> None:
    response = await client.post("/admin/keys", json={"tenant": "default", **bad})
    assert_error(response, 400, "invalid_request")


async def test_a_key_of_no_tenant(client: httpx.AsyncClient) -> None:
    assert_error(await client.post("/admin/keys", json={"tenant": "nobody"}), 404, "not_found")


async def test_repeated_requests(client: httpx.AsyncClient) -> None:
    once = {"Idempotency-Key": "1"}
    first = await client.post("/admin/tenants", json={"name": "acme"}, headers=once)
    again = await client.post("/admin/tenants", json={"name": "acme"}, headers=once)
    assert (first.status_code, first.json()) == (again.status_code, again.json())
    other = await client.post("/admin/tenants", json={"name": "other"}, headers=once)
    assert_error(other, 409, "conflict")
    once = {"Idempotency-Key": "2"}
    key = {"tenant": "acme", "expires_at": (now() + timedelta(1)).isoformat()}
    assert (await client.post("/admin/keys", json=key, headers=once)).status_code == 201
    response = await client.post("/admin/keys", json=key, headers=once)
    assert "not shown again" in str(assert_error(response, 409, "conflict")["message"])
    assert len((await client.get("/admin/keys?tenant=acme")).json()["data"]) == 1


async def test_what_is_done_is_in_the_audit_trail_without_secrets(
    client: httpx.AsyncClient,
) -> None:
    await client.post("/admin/tenants", json={"name": "acme"})
    key = (await client.post("/admin/keys", json={"tenant": "acme"})).json()
    await client.delete(f"/admin/keys/{key['id']}")
    await client.delete("/admin/tenants/acme")
    trail = await client.get("/admin/audit?tenant=acme")
    actions = [entry["action"] for entry in trail.json()["data"]]
    assert actions == ["tenant.delete", "key.revoke", "key.create", "tenant.create"]
    assert key["key"].split("-", 2)[2] not in trail.text


async def test_nothing_passes_to_the_next_tenant_of_a_name(
    client: httpx.AsyncClient, make_adapter: AdapterFactory
) -> None:
    async def make_acme() -> tuple[dict[str, str], str]:
        assert (await client.post("/admin/tenants", json={"name": "acme"})).status_code == 201
        key = {"tenant": "acme", "scopes": ["inference", "adapters"]}
        made = (await client.post("/admin/keys", json=key)).json()
        return {"Authorization": f"Bearer {made['key']}"}, made["id"]

    register = {"name": "home", "source": str(make_adapter())}
    await client.post("/admin/adapters?wait=true", json=register)
    old, _ = await make_acme()
    sharing = {"shared_with": ["acme"]}
    await client.put("/admin/adapters/default/home/sharing", json=sharing)
    chat = {"model": "default/home"}
    assert (await client.post(CHAT, json=chat, headers=old)).status_code == 200
    assert (await client.get("/admin/usage", headers=old)).json()["data"]
    await client.delete("/admin/tenants/acme")
    new, key_id = await make_acme()
    assert_error(await client.post(CHAT, json=chat, headers=new), 404, "model_not_found")
    assert (await client.get("/admin/usage", headers=new)).json()["data"] == []
    trail = (await client.get("/admin/audit", headers=new)).json()["data"]
    assert [entry["subject"] for entry in trail] == [f"key {key_id}", "acme"]
    everything = (await client.get("/admin/audit", params={"tenant": "acme"})).json()["data"]
    assert len(everything) > 2, "admins see what was done to either"


async def test_an_idempotency_key_outlives_the_api_key(
    client: httpx.AsyncClient, keys: Keys
) -> None:
    once = {"Idempotency-Key": "rotated"}
    body = {"name": "acme"}
    assert (await client.post("/admin/tenants", json=body, headers=once)).status_code == 201
    other = {"Authorization": f"Bearer {keys.create('default', ['admin'])}"}
    again = await client.post("/admin/tenants", json=body, headers=once | other)
    assert again.status_code == 201
