"""A browser without a window: it keeps the session's cookie and sends what the pages send."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from html import unescape

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from server.auth import Keys

_TOKEN = re.compile(r'"x-csrf-token": "([0-9a-f]+)"')


@dataclass
class Browser:
    """Asks for pages, and for parts of pages as the console's scripts do."""

    client: httpx.AsyncClient
    token: str = ""

    async def open(self, path: str) -> httpx.Response:
        """Open a page, and remember the token that it gives for changes."""
        page = await self.client.get(path)
        if found := _TOKEN.search(unescape(page.text)):
            self.token = found[1]
        return page

    async def ask(self, method: str, path: str, **form: object) -> httpx.Response:
        """Ask for a part of a page, or for a change."""
        headers = {"hx-request": "true", "x-csrf-token": self.token}
        data = form or None
        return await self.client.request(method, path, headers=headers, data=data)

    async def log_in(self, key: str) -> httpx.Response:
        """Log in with a key."""
        await self.open("/console/login")
        answer = await self.ask("POST", "/console/login", key=key)
        if answer.is_success:
            await self.open(answer.headers["hx-redirect"])
        return answer


@pytest_asyncio.fixture
async def browser(app: FastAPI) -> AsyncIterator[Browser]:
    """A browser that is not logged in."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://loraplex") as client:
        yield Browser(client)


@pytest.fixture
def admin_key(keys: Keys) -> str:
    return keys.create("default", ["admin", "inference"])


@pytest_asyncio.fixture
async def admin(browser: Browser, admin_key: str) -> Browser:
    """A browser that is logged in as an admin."""
    assert (await browser.log_in(admin_key)).is_success
    return browser
