"""Every answer names its request."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI

from tests.server.answers import CHAT

ODD = ["", "a b", "x" * 129, "a/b", "<script>", "a,b"]


@pytest.mark.parametrize("path", ["/v1/models", "/livez", "/nowhere", "/admin/adapters"])
async def test_a_sane_id_comes_back(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path, headers={"X-Request-Id": "abc-1.2:3_4"})
    assert answer.headers["x-request-id"] == "abc-1.2:3_4"
    assert "request-id" not in answer.headers


@pytest.mark.parametrize("given", ODD)
async def test_others_get_one_of_ours(client: httpx.AsyncClient, given: str) -> None:
    ids = [
        (await client.get("/livez", headers={"X-Request-Id": given})).headers["x-request-id"]
        for _ in range(2)
    ]
    assert all(found.startswith("req-") for found in ids)
    assert len(set(ids)) == 2


async def test_refusals_have_one_too(client: httpx.AsyncClient) -> None:
    client.headers = httpx.Headers({"X-Request-Id": "mine"})
    refused = await client.post(CHAT, json={})
    assert (refused.status_code, refused.headers["x-request-id"]) == (401, "mine")


async def test_anthropics_clients_find_it_under_their_name(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/messages", json={}, headers={"X-Request-Id": "mine"})
    assert answer.headers["request-id"] == answer.headers["x-request-id"] == "mine"


async def test_a_failure_in_the_log_names_the_request(
    app: FastAPI, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    @app.get("/v1/planted")
    async def fail() -> None:
        raise RuntimeError("planted")

    answer = await client.get("/v1/planted", headers={"X-Request-Id": "mine-7"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "mine-7")
    assert "request mine-7" in caplog.text
