"""Tenants, their quotas and keys: for admins only, a page at a time, and a key shown once."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest
from sqlalchemy import insert

from adapters_registry.records.keys import create_key, new_key
from adapters_registry.records.tables import Tenant
from adapters_registry.records.tenants import Quota, create_tenant, set_policy
from adapters_registry.registry import Registry
from adapters_registry.trust.policy import SignatureRule, TenantPolicy, TrustedKey
from server.auth import Keys
from server.console.pages import keys as keys_page
from tests.server.console.conftest import Browser
from tests.server.console.crowd import NUM_TENANTS
from tests.signing import SigningKey

_KEY = re.compile(r"lpx-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")


@pytest.fixture(autouse=True)
def acme(registry: Registry) -> None:
    registry.apply(create_tenant, "acme")


async def test_only_admins_see_and_change_them(browser: Browser, keys: Keys) -> None:
    await browser.log_in(keys.create("acme", ["adapters", "inference"]))
    for path in ("/console/tenants", "/console/tenants/acme", "/console/keys"):
        assert (await browser.open(path)).status_code == 403
    for path in (
        "/console/tenants",
        "/console/tenants/acme/quota",
        "/console/tenants/acme/policy",
        "/console/tenants/acme/delete",
        "/console/tenants/acme/suspend",
        "/console/tenants/acme/resume",
        "/console/keys",
        "/console/keys/x/revoke",
        "/console/keys/x/rotate",
    ):
        assert (await browser.ask("POST", path, name="evil", tenant="acme")).status_code == 403


async def test_a_tenant_is_created_limited_and_deleted(admin: Browser, registry: Registry) -> None:
    created = await admin.ask("POST", "/console/tenants", name="newco")
    assert created.headers["hx-redirect"] == "/console/tenants/newco"
    page = await admin.open("/console/tenants/newco")
    fields = dict(re.findall(r'name="(\w+)" value="(\d*)"', page.text))
    assert fields["weight"] == "1"
    assert fields["requests_per_minute"] == ""
    fields |= {"requests_per_minute": "60", "weight": "3", "adapters": "0"}
    tiers = {"service_tiers": ["flex", "priority"]}
    saved = await admin.ask("POST", "/console/tenants/newco/quota", **fields, **tiers)
    assert saved.status_code == 200
    assert 'name="requests_per_minute" value="60"' in saved.text
    assert saved.text.count(" checked>") == 2
    expected = Quota(
        requests_per_minute=60, adapters=0, weight=3, service_tiers=("flex", "priority")
    )
    assert registry.catalog.tenants["newco"].quota == expected
    assert registry.audit(tenant="newco", action="tenant.quota")[0].actor.startswith("key ")
    gone = await admin.ask("POST", "/console/tenants/newco/delete")
    assert gone.headers["hx-redirect"] == "/console/tenants"
    assert (await admin.open("/console/tenants/newco")).status_code == 404


async def test_a_tenant_is_suspended_and_resumed(admin: Browser, registry: Registry) -> None:
    page = await admin.open("/console/tenants/acme")
    assert 'hx-post="/console/tenants/acme/suspend"' in page.text
    suspended = await admin.ask("POST", "/console/tenants/acme/suspend", reason="<b>unpaid</b>")
    assert "<b>unpaid" not in suspended.text
    assert "<b>unpaid</b>" in unescape(suspended.text)
    found = registry.catalog.tenants["acme"].suspension
    assert found
    assert found.reason == "<b>unpaid</b>"
    assert "state suspended" in (await admin.open("/console/tenants")).text
    assert (await admin.ask("POST", "/console/tenants/acme/resume")).status_code == 200
    assert registry.catalog.tenants["acme"].suspension is None


async def test_a_policy_is_set(admin: Browser, registry: Registry, tmp_path: Path) -> None:
    key = SigningKey(tmp_path, "release")
    keys = (TrustedKey("release", key.pem),)
    registry.apply(set_policy, "acme", TenantPolicy(trusted_keys=keys))
    page = await admin.open("/console/tenants/acme")
    assert f'title="{key.details["fingerprint"]}">release<' in page.text
    form = {"signatures": "required", "sources": "hf://acme/*\r\ns3://bucket/x\r\n"}
    saved = await admin.ask("POST", "/console/tenants/acme/policy", **form)
    assert saved.status_code == 200
    assert "hf://acme/*\ns3://bucket/x" in saved.text
    expected = TenantPolicy(SignatureRule.REQUIRED, keys, (), ("hf://acme/*", "s3://bucket/x"))
    assert registry.catalog.tenants["acme"].policy == expected
    assert registry.audit(tenant="acme", action="tenant.policy")


async def test_what_makes_no_sense_changes_nothing(admin: Browser, registry: Registry) -> None:
    for path, form in (
        ("/console/tenants", {"name": "Not A Name"}),
        ("/console/tenants", {"name": ""}),
        ("/console/tenants", {"name": "acme"}),
        ("/console/tenants/acme/quota", {"weight": "0"}),
        ("/console/tenants/acme/quota", {"requests_per_minute": "many"}),
        ("/console/tenants/acme/quota", {"nonsense": "1"}),
        ("/console/tenants/nobody/quota", {"weight": "1"}),
        ("/console/tenants/default/delete", {}),
        ("/console/tenants/acme/policy", {"signatures": "required"}),
        ("/console/tenants/acme/policy", {"signatures": "sometimes"}),
        ("/console/tenants/acme/policy", {"signatures": "none", "sources": "hf://*"}),
        ("/console/tenants/nobody/policy", {"signatures": "none"}),
        ("/console/keys", {"tenant": "acme"}),
        ("/console/keys", {"tenant": "acme", "scopes": "root"}),
        ("/console/keys", {"tenant": "nobody", "scopes": "inference"}),
        ("/console/keys", {"tenant": "acme", "scopes": "inference", "expires_on": "2020-01-01"}),
        ("/console/keys", {"tenant": "acme", "scopes": "inference", "label": "x" * 65}),
        ("/console/keys/0123456789ab/revoke", {}),
        ("/console/keys/0123456789ab/rotate", {}),
        ("/console/keys/0123456789ab/rotate", {"overlap_seconds": "-1"}),
    ):
        before = registry.catalog
        refused = await admin.ask("POST", path, **form)
        assert 400 <= refused.status_code < 500, (path, form)
        assert refused.headers["hx-retarget"] == "#messages"
        assert registry.catalog.tenants == before.tenants
        assert registry.catalog.keys == before.keys


async def test_a_key_is_shown_once_and_revoked(
    admin: Browser, registry: Registry, keys: Keys
) -> None:
    hostile = "<script>alert(1)</script>"
    form = {"tenant": "acme", "scopes": ["inference", "adapters"], "label": hostile}
    created = await admin.ask("POST", "/console/keys", **form, expires_on="2999-01-01")
    found = _KEY.search(created.text)
    assert found
    assert created.headers["cache-control"] == "no-store"
    key, key_id = found[0], found[1]
    assert keys.authenticate(key).tenant == "acme"
    record = registry.catalog.keys[key_id]
    assert record.scopes == {"inference", "adapters"}
    assert record.expires_at is not None
    page = await admin.open("/console/keys?tenant=acme")
    assert key_id in page.text
    assert key not in page.text
    assert hostile not in page.text
    assert hostile in unescape(page.text)
    revoked = await admin.ask("POST", f"/console/keys/{key_id}/revoke")
    assert f"The key {key_id} is revoked" in revoked.text
    assert registry.catalog.keys[key_id].revoked_at


async def test_a_key_is_rotated_and_the_new_one_shown_once(
    admin: Browser, registry: Registry, keys: Keys
) -> None:
    old = keys.create("acme", ["inference"])
    old_id = old.split("-")[1]
    form = {"overlap_seconds": "3600", "shown": "acme"}
    rotated = await admin.ask("POST", f"/console/keys/{old_id}/rotate", **form)
    found = _KEY.search(rotated.text)
    assert found
    assert keys.authenticate(found[0]).tenant == keys.authenticate(old).tenant == "acme"
    page = await admin.open("/console/keys?tenant=acme")
    assert found[0] not in page.text
    assert f"replaced by {found[1]}" in page.text
    assert f'data-opens="rotate-{old_id}"' not in page.text


async def test_the_last_admin_key_stays(admin: Browser, admin_key: str) -> None:
    refused = await admin.ask("POST", f"/console/keys/{admin_key.split('-')[1]}/revoke")
    assert refused.status_code == 409
    assert "last valid admin key" in refused.text


async def test_pages_hold_with_a_thousand_tenants(admin: Browser, registry: Registry) -> None:
    names = [f"tenant-{index:04}" for index in range(NUM_TENANTS)]
    with registry.change() as change:
        rows = [{"name": name, "epoch": change.epoch} for name in names]
        change.session.execute(insert(Tenant), rows)
    seen: list[str] = []
    path = "/console/tenants?search=tenant-0"
    while path:
        page = await admin.open(path)
        seen += re.findall(r'href="/console/tenants/([^"]+)"', page.text)
        following = re.search(r'<a href="([^"]+)" rel="next">', page.text)
        path = unescape(following[1]) if following else ""
    assert seen == names
    assert "1,000 found" in page.text


async def test_keys_have_pages(
    admin: Browser, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_page, "PAGE_SIZE", 2)
    for _ in range(5):
        registry.apply(create_key, new_key(), "acme", ["inference"])
    expected = [each.id for each in registry.catalog.keys.values() if each.tenant == "acme"]
    seen: list[str] = []
    path = "/console/keys?tenant=acme"
    while path:
        page = await admin.open(path)
        seen += re.findall(r'data-opens="revoke-(\w+)"', page.text)
        following = re.search(r'<a href="([^"]+)" rel="next">', page.text)
        path = unescape(following[1]) if following else ""
    assert sorted(seen) == sorted(expected)
    assert len(seen) == 5
    assert (await admin.open("/console/keys?after=nonsense")).status_code == 400
