"""The page of the audit trail: filters, pages, and whose changes it shows."""

from __future__ import annotations

import re
from html import unescape

import pytest

from adapters_registry.records.keys import create_key, new_key
from adapters_registry.records.tenants import Quota, create_tenant, set_quota
from adapters_registry.registry import Registry
from server.auth import Keys
from server.console.pages import audit
from tests.server.console.conftest import Browser


@pytest.fixture(autouse=True)
def tenants(registry: Registry) -> None:
    for name in ("acme", "other"):
        registry.apply(create_tenant, name)
        registry.apply(set_quota, name, Quota(weight=5))


async def test_an_admin_sees_and_filters_all_changes(admin: Browser) -> None:
    page = await admin.open("/console/audit")
    for part in ("tenant.create", "tenant.quota", "acme", "other", "weight: 5"):
        assert part in page.text
    for query, there, absent in (
        ("tenant=acme", "acme", ">other<"),
        ("action=tenant.quota", "weight: 5", ">tenant.create<"),
        ("subject=other&tenant=&action=&before=", ">other<", ">acme<"),
    ):
        page = await admin.open(f"/console/audit?{query}")
        assert there in page.text
        assert absent not in page.text
    assert "No change matches" in (await admin.open("/console/audit?action=nonsense")).text


async def test_a_tenant_sees_its_own(browser: Browser, keys: Keys) -> None:
    await browser.log_in(keys.create("acme", ["adapters"]))
    for query in ("", "?tenant=acme", "?subject=other", "?action=tenant.create"):
        page = await browser.open(f"/console/audit{query}")
        assert page.status_code == 200
        assert ">other<" not in page.text
    assert (await browser.open("/console/audit?tenant=other")).status_code == 404


async def test_changes_have_pages(
    admin: Browser, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "PAGE_SIZE", 3)
    for weight in range(10, 17):
        registry.apply(set_quota, "acme", Quota(weight=weight))
    seen: list[str] = []
    path = "/console/audit?tenant=acme&action=tenant.quota"
    while path:
        page = await admin.open(path)
        seen += re.findall(r"weight:[^<]*?(\d+)</td>", page.text)
        following = re.search(r'<a href="([^"]+)" rel="next">', page.text)
        path = unescape(following[1]) if following else ""
    assert seen == ["16", "15", "14", "13", "12", "11", "10", "5"]


@pytest.mark.parametrize(
    "query", ["before=x", "before=-1", f"before={1 << 64}", "action=" + "x" * 999]
)
async def test_what_makes_no_sense_is_refused(admin: Browser, query: str) -> None:
    assert (await admin.open(f"/console/audit?{query}")).status_code in (400, 422)


async def test_a_hostile_label_stays_text(admin: Browser, registry: Registry) -> None:
    hostile = '"><img src=x onerror=alert(1)>'
    registry.apply(create_key, new_key(), "acme", ["inference"], label=hostile)
    page = await admin.open("/console/audit?action=key.create")
    assert hostile not in page.text
    assert hostile in unescape(page.text)
