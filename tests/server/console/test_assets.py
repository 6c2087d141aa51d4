"""What the pages load besides: few bytes, and all of it from this server."""

from __future__ import annotations

import gzip
import re
from html import unescape

import pytest

from server.console.rendering import STATIC
from tests.server.console.conftest import Browser

LARGEST_PAGE, LARGEST_PACKED = 110_000, 60_000
PAGES = ("overview", "adapters", "register", "playground", "usage", "tenants", "keys", "audit")


@pytest.mark.parametrize("page", PAGES)
async def test_a_page_loads_about_a_hundred_kilobytes(admin: Browser, page: str) -> None:
    text = (await admin.open(f"/console/{page}")).text
    assets = set(re.findall(r'(?:src|href)="(/console/static/[^"]+)"', text))
    sizes = [len((await admin.client.get(unescape(url))).content) for url in assets]
    assert len(sizes) >= 4, "styles, scripts and the icon"
    assert sum(sizes) <= LARGEST_PAGE
    assert not re.search(r'(?:src|href)="(?:https?:)?//', text), "from another host"


def test_all_of_it_is_small_when_packed() -> None:
    files = [file.read_bytes() for file in STATIC.iterdir() if file.is_file()]
    assert sum(len(gzip.compress(file)) for file in files) <= LARGEST_PACKED
