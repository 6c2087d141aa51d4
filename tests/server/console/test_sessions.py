"""Who is let in, for how long, and what a page may do."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Mount

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.store import ContentStore
from adapters_registry.records.keys import create_key, new_key, revoke_key
from adapters_registry.records.tables import now
from adapters_registry.records.tenants import create_tenant
from adapters_registry.registry import Registry
from server.auth import Keys
from server.console.sessions import COOKIE, MAX_SECONDS, Sessions, read_secret
from server.errors import Unauthenticated
from tests.server.console.conftest import Browser

SECRET = b"s" * 32
OPEN = {"/login", "/session", "/static/{name}"}


async def test_a_key_opens_a_session_and_is_not_kept(browser: Browser, admin_key: str) -> None:
    answer = await browser.log_in(admin_key)
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert f"Max-Age={MAX_SECONDS}" in cookie
    assert "Path=/console" in cookie
    secret = admin_key.split("-", 2)[2]
    assert secret not in cookie
    page = await browser.open("/console/adapters")
    assert page.status_code == 200
    assert secret not in page.text


async def test_over_https_the_cookie_is_sent_over_https_only(
    browser: Browser, admin_key: str
) -> None:
    browser.client.base_url = "https://loraplex"
    assert "Secure" in (await browser.log_in(admin_key)).headers["set-cookie"]


@pytest.mark.parametrize("key", ["", "nonsense", "lpx-0123456789ab-" + "x" * 43, "k" * 9999])
async def test_what_is_no_key_is_refused_in_the_form(browser: Browser, key: str) -> None:
    answer = await browser.log_in(key)
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert 'role="alert"' in answer.text
    assert (await browser.open("/console/adapters")).status_code == 303


async def test_a_revoked_key_ends_its_session_with_the_next_click(
    admin: Browser, registry: Registry, keys: Keys, admin_key: str
) -> None:
    keys.create("default", ["admin"])
    registry.apply(revoke_key, admin_key.split("-")[1])
    part = await admin.ask("GET", "/console/adapters")
    assert part.status_code == 401
    assert part.headers["hx-redirect"].startswith("/console/login?why=revoked")
    page = await admin.client.get("/console/adapters", follow_redirects=True)
    assert "was revoked" in page.text


async def test_an_expired_key_ends_its_session(registry: Registry, keys: Keys) -> None:
    key, sessions = new_key(), Sessions(keys, SECRET)
    registry.apply(create_key, key, "default", ["admin"], expires_at=now() + timedelta(hours=1))
    _, cookie = sessions.begin(key)
    later = Keys(registry, clock=lambda: now() + timedelta(hours=2))
    with pytest.raises(Unauthenticated) as refused:
        Sessions(later, SECRET).caller(cookie)
    assert refused.value.reason == "expired"


def test_a_session_ends_by_itself(keys: Keys) -> None:
    seconds = 1000.0
    sessions = Sessions(keys, SECRET, clock=lambda: seconds)
    _, cookie = sessions.begin(keys.create("default", ["admin"]))
    seconds += MAX_SECONDS - 1
    assert sessions.caller(cookie).tenant == "default"
    seconds += 1
    with pytest.raises(Unauthenticated):
        sessions.caller(cookie)


def test_a_session_outlives_the_server_and_its_signature_cannot_be_made(keys: Keys) -> None:
    _, cookie = Sessions(keys, SECRET).begin(keys.create("default", ["admin"]))
    assert Sessions(keys, SECRET).caller(cookie).is_admin
    other_id = keys.create("default", ["admin"]).split("-")[1]
    forged = [cookie.replace(cookie.split(".")[0], other_id), cookie[:-1], cookie + "0", "", "..."]
    forged += [cookie.replace(cookie.split(".")[1], "99999999999"), "é.1.x.y"]
    for each in forged:
        with pytest.raises(Unauthenticated):
            Sessions(keys, SECRET).caller(each)
    with pytest.raises(Unauthenticated):
        Sessions(keys, b"t" * 32).caller(cookie)


async def test_who_logs_out_is_out(admin: Browser) -> None:
    cookie = admin.client.cookies[COOKIE]
    assert (await admin.ask("POST", "/console/logout")).status_code == 204
    assert COOKIE not in admin.client.cookies
    admin.client.cookies.set(COOKIE, cookie)
    assert (await admin.open("/console/adapters")).status_code == 303


async def test_a_change_needs_the_token_of_its_session(
    admin: Browser, app: FastAPI, keys: Keys
) -> None:
    for token in ("", "0" * 64, "é"):
        headers = {b"x-csrf-token": token.encode()}
        refused = await admin.client.post("/console/logout", headers=headers)
        assert refused.status_code == 403
    other = Sessions(keys, SECRET).csrf_token("another session")
    refused = await admin.client.post("/console/logout", headers={"x-csrf-token": other})
    assert refused.status_code == 403
    assert (await admin.open("/console/adapters")).status_code == 200


async def test_whoever_has_no_session_sees_no_page(app: FastAPI, browser: Browser) -> None:
    mount = next(r for r in app.routes if isinstance(r, Mount) and r.path == "/console")
    routes = [r for r in mount.routes if isinstance(r, APIRoute) and r.path not in OPEN]
    assert len(routes) >= 3
    values = {"tenant": "default", "name": "x", "number": "1", "alias": "live"}
    for route in routes:
        url = "/console" + route.path
        for name, value in values.items():
            url = url.replace(f"{{{name}}}", value)
        for method in route.methods:
            answer = await browser.client.request(method, url)
            assert answer.status_code == 303, url
            assert answer.headers["location"].startswith("/console/login")
            assert not answer.content


async def test_the_way_back_leads_nowhere_else(browser: Browser, admin_key: str) -> None:
    page = await browser.client.get("/console/adapters?search=a%26b", follow_redirects=True)
    assert 'value="/console/adapters?search=a%26b"' in page.text
    for target in ("https://evil.example/", "//evil.example", "/\\evil", "/docs", "javascript:x"):
        await browser.open("/console/login")
        answer = await browser.ask("POST", "/console/login", key=admin_key, next=target)
        assert answer.headers["hx-redirect"] == "/console/overview"


async def test_after_a_link_from_elsewhere_the_session_goes_on(admin: Browser) -> None:
    answer = await admin.ask("GET", "/console/session?next=/console/adapters%3Fsearch%3Dx")
    assert answer.headers["hx-redirect"] == "/console/adapters?search=x"
    admin.client.cookies.clear()
    answer = await admin.ask("GET", "/console/session?next=/console/adapters")
    assert answer.status_code == 204
    assert "hx-redirect" not in answer.headers


async def test_pages_allow_no_script_and_no_style_in_themselves(admin: Browser) -> None:
    for path in ("/console/login", "/console/adapters", "/console/nowhere"):
        page = await admin.open(path)
        policy = page.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["x-content-type-options"] == "nosniff"
        assert "<style" not in page.text
        assert " style=" not in page.text
        assert "onclick" not in page.text
        assert "http://" not in page.text.replace("http://loraplex", "")


async def test_a_key_that_only_asks_models_sees_no_adapters(
    browser: Browser, registry: Registry, keys: Keys
) -> None:
    registry.apply(create_tenant, "acme")
    await browser.log_in(keys.create("acme", ["inference"]))
    refused = await browser.open("/console/adapters")
    assert refused.status_code == 403
    assert "needs a key with the scope" in refused.text


async def test_other_origins_pages_cannot_call_the_console(admin: Browser) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    preflight = await admin.client.options("/console/logout", headers=headers)
    assert preflight.status_code == 403


async def test_static_files_are_kept_by_browsers(browser: Browser) -> None:
    page = await browser.open("/console/login")
    url = page.text.split('href="')[2].split('"')[0]
    file = await browser.client.get(url)
    assert file.status_code == 200
    assert "immutable" in file.headers["cache-control"]
    for name in ("nothing.css", "licences", "..%2Fapp.py", "%00"):
        assert (await browser.client.get(f"/console/static/{name}")).status_code == 404


def test_a_session_holds_on_each_server_with_the_same_secret(
    registry: Registry, keys: Keys, tmp_path: Path, tiny_base: BaseSpec, database_url: str
) -> None:
    key = keys.create("default", ["admin"])
    _, cookie = Sessions(keys, SECRET).begin(key)
    other = Registry(database_url, ContentStore(tmp_path / "other"), tiny_base)
    other.refresh()
    assert Sessions(Keys(other), SECRET).caller(cookie).key_id == key.split("-")[1]
    with pytest.raises(Unauthenticated):
        Sessions(Keys(other), b"another secret").caller(cookie)
    other.close()


def test_the_secret_is_kept_in_a_file_of_its_owner(tmp_path: Path) -> None:
    file = tmp_path / "console.secret"
    secret = read_secret(file)
    assert read_secret(file) == secret
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("short")
    with pytest.raises(ValueError, match="at least 32"):
        read_secret(file)
