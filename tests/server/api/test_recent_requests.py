"""Requests of the last hour: each has a record that says where its time went."""

from __future__ import annotations

import httpx
from fastapi import FastAPI

from adapters_registry.records.catalog import VersionRecord
from adapters_registry.registry import Registry
from server.auth import Keys
from tests.server.answers import CHAT

MESSAGES = [{"role": "user", "content": "the secret word is plum"}]


async def _ask(client: httpx.AsyncClient, model: str, request_id: str, **more: object) -> None:
    body = {"model": model, "messages": MESSAGES, **more}
    await client.post(CHAT, json=body, headers={"X-Request-Id": request_id})


async def test_a_record_names_version_tier_tokens_and_stages(
    client: httpx.AsyncClient, home: VersionRecord
) -> None:
    await _ask(client, "home", "first")
    await _ask(client, "home", "second")
    [first] = (await client.get("/admin/requests/first")).json()["data"]
    [second] = (await client.get("/admin/requests/second")).json()["data"]
    assert (first["model"], first["version"], first["tier"]) == ("default/home", 1, "disk")
    assert second["tier"] == "slot"
    assert (first["status"], first["complete"], first["tenant"]) == (200, True, "default")
    assert first["input_tokens"] > 0
    assert first["output_tokens"] > 0
    wanted = ["body", "slot", "load", "prompt", "queue", "first_token", "last_token", "sent"]
    assert list(first["stages"]) == wanted
    assert abs(sum(first["stages"].values()) - first["seconds"]) < 0.01


async def test_a_record_holds_no_content(client: httpx.AsyncClient) -> None:
    await _ask(client, "base", "mine")
    assert "plum" not in (await client.get("/admin/requests")).text


async def test_refused_requests_are_there_too(client: httpx.AsyncClient) -> None:
    await _ask(client, "nobody", "lost")
    [row] = (await client.get("/admin/requests?min_status=400")).json()["data"]
    assert (row["request_id"], row["status"], row["model"]) == ("lost", 404, "")


async def test_a_tenant_sees_its_own_only(
    app: FastAPI, client: httpx.AsyncClient, registry: Registry, keys: Keys
) -> None:
    await client.post("/admin/tenants", json={"name": "acme"})
    await _ask(client, "base", "foreign")
    transport = httpx.ASGITransport(app)
    bearer = {"Authorization": f"Bearer {keys.create('acme', ['adapters', 'inference'])}"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://loraplex", headers=bearer
    ) as acme:
        await _ask(acme, "base", "own")
        rows = (await acme.get("/admin/requests")).json()["data"]
        assert {row["request_id"] for row in rows} == {"own"}
        refused = await acme.get("/admin/requests/foreign")
        assert refused.status_code == 404
        assert "no request 'foreign'" in refused.json()["error"]["message"]
        assert (await acme.get("/admin/requests?tenant=default")).status_code == 404


async def test_slowest_first_and_no_probes(client: httpx.AsyncClient) -> None:
    for number in range(3):
        await _ask(client, "base", f"r{number}")
    await client.get("/livez")
    rows = (await client.get("/admin/requests?order=slowest")).json()["data"]
    assert {row["request_id"] for row in rows} >= {"r0", "r1", "r2"}
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds, reverse=True)
    assert all(row["path"] != "/livez" for row in rows)


async def test_whoever_has_no_key_pushes_out_no_record(client: httpx.AsyncClient) -> None:
    await client.get("/v1/models", headers={"Authorization": "", "X-Request-Id": "nobody"})
    await client.get("/v1/" + "x" * 5000, headers={"X-Request-Id": "long"})
    rows = (await client.get("/admin/requests")).json()["data"]
    assert [row["request_id"] for row in rows] == ["long"]
    assert len(rows[0]["path"]) == 200
