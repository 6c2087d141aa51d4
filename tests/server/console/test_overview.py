"""The overview: figures of what was just asked, one's own or everyone's."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape

import pytest
from sqlalchemy.exc import SQLAlchemyError

from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.servers import ServerFigures, report_server
from adapters_registry.records.tables import now
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


async def test_the_tiers_and_the_servers_are_shown(
    admin: Browser, registry: Registry, home: VersionRecord
) -> None:
    at = now()
    figures = ServerFigures("ready", 16, in_slots=9, running=5, waiting=3, elsewhere=1234)
    with registry.session() as session:
        report_server(session, "another", "<b>far</b>:8000", at, figures)
        report_server(session, registry.server_id, "near:8000", at, replace(figures, slots=4))
    text = (await admin.open("/console/overview")).text
    assert re.search(r"On disk</div><div class=\"value\">1<", text)
    assert "Files missing" not in text
    rows = re.findall("<tr>.*?</tr>", text.split('id="servers-title"')[1], re.DOTALL)
    far, near = (next(row for row in rows if name in row) for name in ("far", "near"))
    assert "&lt;b&gt;far" in far
    for part in ("9 of 16", "1,234", "ready", ">5<", ">3<"):
        assert part in far
    assert "(this one)" in near
    assert "(this one)" not in far
    registry.content.discard(home.digest)
    assert "Files missing" in (await admin.ask("GET", "/console/overview/live")).text


async def test_while_the_database_is_away_the_rest_is_shown(
    admin: Browser, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise SQLAlchemyError("away")

    monkeypatch.setattr(registry, "session", fail)
    page = await admin.open("/console/overview")
    assert page.status_code == 200
    assert "database does not answer" in page.text
    assert "Slots" in page.text
