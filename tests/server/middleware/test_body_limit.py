"""Requests that are too large, too slow or malformed; what every answer says to browsers."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from server.middleware.body_limit import BodyLimit
from tests.server.answers import CHAT, assert_error
from tests.server.fake_engine import FakeEngine


def impatient(app: FastAPI, client: httpx.AsyncClient, pause_seconds: float) -> httpx.AsyncClient:
    """The same client, of a server whose bodies may pause for so long only."""
    transport = httpx.ASGITransport(BodyLimit(app, 1, pause_seconds))
    return httpx.AsyncClient(transport=transport, base_url=client.base_url, headers=client.headers)


async def test_headers_that_are_too_large(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/models", headers={"x-large": "x" * (33 << 10)})
    assert_error(response, 431, "invalid_request")
    assert (await client.get("/v1/models", headers={"x": "x" * 8000})).status_code == 200


async def test_a_body_that_pauses_too_long(app: FastAPI, client: httpx.AsyncClient) -> None:
    client = impatient(app, client, 0.2)

    async def body(pause: float) -> AsyncIterator[bytes]:
        for part in (b'{"mod', b'el": "base"}'):
            yield part
            await asyncio.sleep(pause)

    json = {"content-type": "application/json"}
    response = await client.post(CHAT, content=body(30), headers=json)
    assert response.status_code == 408
    assert (await client.post(CHAT, content=body(0), headers=json)).status_code == 200


async def test_a_body_that_drips(app: FastAPI, client: httpx.AsyncClient) -> None:
    client = impatient(app, client, 0.5)

    async def body() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.01)

    json = {"content-type": "application/json"}
    response = await client.post(CHAT, content=body(), headers=json)
    assert "too slowly" in str(assert_error(response, 408, "invalid_request")["message"])


async def test_who_has_sent_its_body_may_wait_for_the_answer(
    app: FastAPI, client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    client = impatient(app, client, 0.05)
    body = {"model": "base", "stream": True}
    answer = asyncio.create_task(client.post(CHAT, json=body))
    await asyncio.sleep(0.3)
    engine.stream_may_end.set()
    assert (await answer).text.endswith("[DONE]\n\n")


@pytest.mark.parametrize("path", ["/docs", "/v1/models", "/admin/adapters", "/nowhere"])
async def test_browsers_are_told_what_not_to_do(client: httpx.AsyncClient, path: str) -> None:
    for key in ("", client.headers["Authorization"]):
        headers = (await client.get(path, headers={"Authorization": key})).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b'{"model": "base", "messages": ' + DEEP.encode() + b"}",
        b'{"model": "base", "max_tokens": ' + b"9" * 5000 + b"}",
        b'{"model": "\\ud800"}',
        b'{"model": {"a": 1}}',
        b'{"model": "base", "max_tokens": 1e999}',
    ],
)
async def test_malformed_bodies(client: httpx.AsyncClient, content: bytes) -> None:
    for method, path in (
        ("POST", CHAT),
        ("POST", "/admin/adapters"),
        ("POST", "/admin/tenants"),
        ("POST", "/admin/keys"),
        ("PUT", "/admin/tenants/default/quota"),
        ("PUT", "/admin/adapters/default/none/sharing"),
    ):
        headers = {"content-type": "application/json"}
        response = await client.request(method, path, content=content, headers=headers)
        assert 400 <= response.status_code < 500, (path, response.text)


async def test_keys_with_stray_whitespace(client: httpx.AsyncClient) -> None:
    key = client.headers.pop("Authorization").removeprefix("Bearer ")
    for name, value in (
        ("authorization", f"Bearer  {key} "),
        ("authorization", f"bearer {key}\t"),
        ("x-api-key", f" {key}\t"),
    ):
        assert (await client.get("/v1/models", headers={name: value})).status_code == 200
    for value in (f"Bearer {key[:20]} {key[20:]}", f"Bearer{key}", f"{key}", "Bearer ", " "):
        response = await client.get("/v1/models", headers={"authorization": value})
        assert_error(response, 401, "invalid_api_key")
