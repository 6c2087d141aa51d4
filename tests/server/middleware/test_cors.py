"""Web pages of allowed origins may call the server; others may not."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from server.auth import Keys
from server.middleware.cors import Cors
from server.settings import Settings, SettingsError, load_settings

PAGE = "http://localhost:3000"
ASKS = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-mine",
}


@pytest_asyncio.fixture
async def browser(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(Cors(app, (PAGE,), admin=False))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        yield client


async def test_a_preflight_of_an_allowed_origin_needs_no_key(browser: httpx.AsyncClient) -> None:
    answer = await browser.options("/v1/chat/completions", headers=ASKS)
    assert answer.is_success
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "POST" in answer.headers["access-control-allow-methods"]
    allowed = answer.headers["access-control-allow-headers"].lower()
    assert {"authorization", "content-type", "x-mine"} <= {h.strip() for h in allowed.split(",")}
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    ("path", "origin"),
    [("/v1/chat/completions", "http://evil.example"), ("/admin/keys", PAGE), ("/admin", PAGE)],
)
async def test_others_are_refused(browser: httpx.AsyncClient, path: str, origin: str) -> None:
    answer = await browser.options(path, headers={**ASKS, "Origin": origin})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


async def test_answers_and_errors_can_be_read_by_the_page(
    browser: httpx.AsyncClient, keys: Keys
) -> None:
    key = keys.create("default", ["inference"])
    for headers, status in ({"Authorization": f"Bearer {key}"}, 200), ({}, 401):
        answer = await browser.get("/v1/models", headers={"Origin": PAGE, **headers})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "x-request-id" in answer.headers["access-control-expose-headers"]


async def test_it_is_off_by_default(client: httpx.AsyncClient) -> None:
    refused = await client.options("/v1/chat/completions", headers=ASKS)
    assert refused.status_code == 403
    answer = await client.get("/v1/models", headers={"Origin": PAGE})
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers


def test_origins_are_read_from_one_setting() -> None:
    settings = Settings(cors_origins="https://a.example, http://localhost:3000/")
    assert settings.cors_origins == ("https://a.example", "http://localhost:3000")
    with pytest.raises(SettingsError, match="not an origin"):
        load_settings(cors_origins="a.example")
