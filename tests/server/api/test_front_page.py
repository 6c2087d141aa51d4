"""The pages for a browser need no key and no other host."""

from __future__ import annotations

import re

import httpx
import pytest
from fastapi import FastAPI

from server.api.front_page import PATHS
from server.middleware.authentication import OPEN_PATHS


@pytest.mark.parametrize("path", sorted(PATHS))
async def test_open_and_from_here_alone(app: FastAPI, path: str) -> None:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://x"
    ) as stranger:
        answer = await stranger.get(path)
        assert answer.status_code == 200
        if answer.headers["content-type"].startswith("text/html"):
            links = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
            assert links
            for link in links:
                assert link.startswith("/")
                assert (await stranger.get(link)).status_code == 200
            policy = answer.headers["content-security-policy"]
            assert "script-src 'self';" in policy
            assert "<script>" not in answer.text


def test_nothing_else_was_opened() -> None:
    assert PATHS < OPEN_PATHS
    probes = {"/livez", "/startupz", "/readyz", "/health", "/metrics"}
    assert probes | {"/openapi.json"} == OPEN_PATHS - PATHS


async def test_the_first_page_says_nothing_of_adapters(
    client: httpx.AsyncClient, home: object
) -> None:
    text = (await client.get("/")).text
    assert "ready" in text
    assert "home" not in text


async def test_no_other_file_is_served(client: httpx.AsyncClient) -> None:
    for name in ("LICENSE", "..%2Ffront_page.py", "nothing.js"):
        assert (await client.get(f"/docs/{name}")).status_code == 404


async def test_health_is_readiness(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health")).json() == (await client.get("/readyz")).json()
