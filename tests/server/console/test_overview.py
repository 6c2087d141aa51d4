"""The overview: figures of what was just asked, one's own or everyone's."""

from __future__ import annotations

import json
import re
from html import unescape

from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.tenants import create_tenant
from adapters_registry.registry import Registry
from server.auth import Keys
from tests.server.console.conftest import Browser
from tests.server.fake_engine import OUTPUT_TOKENS


async def test_what_was_asked_is_in_the_figures(
    admin: Browser, home: VersionRecord, admin_key: str
) -> None:
    headers = {"authorization": f"Bearer {admin_key}"}
    for _ in range(2):
        await admin.client.post("/v1/chat/completions", json={"model": "home"}, headers=headers)
    page = await admin.open("/console/overview")
    part = await admin.ask("GET", "/console/overview/live")
    assert "<html" not in part.text
    for text in (page.text, part.text):
        found = re.search(r'data-series="([^"]+)"', text)
        assert found
        series = json.loads(unescape(found[1]))
        assert sum(series["requests"]) * 10 == 2
        assert sum(series["tokens"]) * 10 == 2 * OUTPUT_TOKENS
        assert "1 of 4" in text


async def test_a_tenant_sees_its_own_figures_and_nothing_of_the_machine(
    browser: Browser, registry: Registry, keys: Keys, home: VersionRecord, admin_key: str
) -> None:
    headers = {"authorization": f"Bearer {admin_key}"}
    await browser.client.post("/v1/chat/completions", json={"model": "home"}, headers=headers)
    registry.apply(create_tenant, "acme")
    await browser.log_in(keys.create("acme", ["adapters"]))
    page = await browser.open("/console/overview")
    found = re.search(r'data-series="([^"]+)"', page.text)
    assert found
    assert sum(json.loads(unescape(found[1]))["requests"]) == 0
    for machine in ("Slots", "On disk", "Engine"):
        assert machine not in page.text
