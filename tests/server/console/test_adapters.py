"""The list of adapters: what it shows, to whom, and that it holds with 10,000."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from shutil import copytree

import pytest
from sqlalchemy import event

from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.retirement import retire_version
from adapters_registry.records.tenants import create_tenant
from adapters_registry.records.usage.consumption import Consumption, hour_of
from adapters_registry.records.usage.recording import add_usage
from adapters_registry.registry import Registry
from server.auth import Keys
from server.console.adapters import PAGE_SIZE
from server.console.rendering import format_bytes
from tests.server.console.conftest import Browser
from tests.server.console.crowd import NUM_ADAPTERS, fill, name_of
from tests.tiny import AdapterFactory

_LINK = re.compile(r'href="/console/adapters/([^/"]+)/([^/"]+)"')


def shown(text: str) -> list[tuple[str, str]]:
    """Return tenant and name of each adapter of a list."""
    return _LINK.findall(text)


@contextmanager
def counted_statements(registry: Registry) -> Iterator[list[str]]:
    statements: list[str] = []

    def note(*arguments: object) -> None:
        statements.append(str(arguments[2]))

    event.listen(registry.engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(registry.engine, "before_cursor_execute", note)


async def test_an_adapter_is_shown_with_what_it_did(
    admin: Browser, home: VersionRecord, admin_key: str
) -> None:
    headers = {"authorization": f"Bearer {admin_key}"}
    for _ in range(3):
        answer = await admin.client.post(
            "/v1/chat/completions", json={"model": "home"}, headers=headers
        )
        assert answer.status_code == 200
    page = await admin.open("/console/adapters")
    row = page.text[page.text.index("default/home</a>") :]
    for part in ("ready", "@1", "slot", ">3<", "just now"):
        assert part in row


async def test_without_a_live_version_rank_and_size_are_the_newest_ready_ones(
    admin: Browser, registry: Registry, home: VersionRecord, make_adapter: AdapterFactory
) -> None:
    stage = partial(copytree, make_adapter(rank=3), dirs_exist_ok=True)
    registered, _ = registry.register("default", "home", "test", stage)
    other = registry.accept(registered, registry.check_files(registered))
    assert 'class="muted"> @2</span></td>' not in (await admin.open("/console/adapters")).text
    registry.apply(retire_version, "default", "home", 1, force=True)
    page = (await admin.open("/console/adapters")).text
    assert '3<span class="muted"> @2</span></td>' in page
    assert f'{format_bytes(other.size_bytes)}<span class="muted"> @2</span></td>' in page


async def test_the_last_use_is_shown_from_the_records_once_an_hour_has_passed(
    admin: Browser, registry: Registry, home: VersionRecord
) -> None:
    page = "/console/adapters/default/home"
    made = registry.get_adapter("default", "home").created_at
    use(registry, made - timedelta(days=9))
    assert f'datetime="{(made - timedelta(days=9)).date()}"' not in (await admin.open(page)).text
    use(registry, made + timedelta(days=3))
    for path in ("/console/adapters", page):
        assert f"{(made + timedelta(days=3)).date()}</time>" in (await admin.open(path)).text


def use(registry: Registry, at: datetime) -> None:
    with registry.session() as session:
        add_usage(session, {(hour_of(at), "1", "acme", "default/home"): Consumption(1)})


async def test_a_tenant_sees_its_own(
    browser: Browser, registry: Registry, keys: Keys, home: VersionRecord
) -> None:
    registry.apply(create_tenant, "acme")
    await browser.log_in(keys.create("acme", ["adapters"]))
    page = await browser.open("/console/adapters")
    assert page.status_code == 200
    assert "default/home" not in page.text
    assert "There are no adapters yet" in page.text


async def test_what_makes_no_sense_is_refused_in_words(admin: Browser) -> None:
    for query in ("state=nonsense", "sort=nonsense", "after=nonsense", "search=" + "x" * 999):
        page = await admin.open(f"/console/adapters?{query}")
        assert page.status_code in (400, 422), query
        part = await admin.ask("GET", f"/console/adapters?{query}")
        assert part.headers["hx-retarget"] == "#messages"


@pytest.fixture
def crowd(registry: Registry) -> None:
    fill(registry)


@pytest.mark.usefixtures("crowd")
async def test_pages_hold_with_ten_thousand_adapters(admin: Browser, registry: Registry) -> None:
    seen: list[tuple[str, str]] = []
    path, slowest = "/console/adapters", 0.0
    for _ in range(4):
        with counted_statements(registry) as statements:
            began = time.perf_counter()
            page = await admin.open(path)
            slowest = max(slowest, time.perf_counter() - began)
        assert page.status_code == 200
        assert len(statements) <= 2, statements
        seen += shown(page.text)
        following = re.search(r'<a href="([^"]+)" rel="next">', page.text)
        assert following
        path = "/console/adapters" + following[1].replace("&amp;", "&")
    expected = sorted(name_of(index) for index in range(NUM_ADAPTERS))
    assert seen == expected[: 4 * PAGE_SIZE]
    print(f"slowest of 4 pages of {NUM_ADAPTERS} adapters: {slowest * 1000:.0f} ms")
    found = await admin.open("/console/adapters?search=tenant-0777/bot-03&state=&sort=name")
    assert shown(found.text) == [("tenant-0777", "bot-03")]
    assert "1 found" in found.text
