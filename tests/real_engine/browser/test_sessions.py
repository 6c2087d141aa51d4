"""Who is let in at the console, and how a session ends."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.real_engine.browser.conftest import MakeFiles, Visiting
from tests.real_engine.browser.people import make_key, upload
from tests.real_engine.browser.visitor import Visitor
from tests.real_engine.running_server import RunningServer

KEY_SECONDS = 5


def test_a_key_opens_the_page_that_was_asked_for_and_is_not_kept(
    visitor: Visitor, server: RunningServer
) -> None:
    page = visitor.page
    visitor.expect_fault("status of 401")
    visitor.open("/adapters?search=smart")
    expect(page).to_have_title("Log in · Loraplex")
    key = page.get_by_label("API key")
    expect(key).to_be_focused()
    key.fill("lpx-nobody-nothing")
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#key-error")).to_be_visible()
    expect(key).to_have_attribute("aria-invalid", "true")
    key.fill(server.key)
    key.press("Enter")
    expect(page).to_have_url(re.compile(r"/console/adapters\?search=smart$"))
    expect(page.get_by_role("link", name="default/smart-home", exact=True)).to_be_visible()
    (cookie,) = visitor.cookies()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    kept = page.evaluate(
        "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
    )
    assert kept == '[{},{},""]'
    assert server.key.split("-", 2)[2] not in cookie["value"] + page.content()


def test_who_logs_out_sees_nothing_when_going_back(visitor: Visitor, server: RunningServer) -> None:
    key, _ = make_key(server, "default", "admin")
    page = visitor.log_in(key, "/keys")
    expect(page.get_by_role("heading", name="Keys")).to_be_visible()
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_text("You are logged out.")).to_be_visible()
    page.go_back()
    expect(page.get_by_label("API key")).to_be_visible()
    assert not visitor.cookies()


def follow_a_link(page: Page) -> None:
    page.get_by_role("link", name="Audit").click()


def search(page: Page) -> None:
    page.get_by_label("Search").press_sequentially("x")


def log_out(page: Page) -> None:
    page.get_by_role("button", name="Log out").click()


@pytest.mark.parametrize("click", [follow_a_link, search, log_out])
def test_a_revoked_key_ends_the_session_with_the_next_click(
    visitor: Visitor, server: RunningServer, click: Callable[[Page], None]
) -> None:
    key, key_id = make_key(server, "default", "admin")
    page = visitor.log_in(key, "/adapters")
    assert server.admin("DELETE", f"/admin/keys/{key_id}").status_code == 204
    if click is not follow_a_link:
        visitor.expect_fault("status of 401")
    click(page)
    expect(
        page.get_by_text("The API key of your session was revoked. Log in again.")
    ).to_be_visible()
    expect(page.get_by_label("API key")).to_be_focused()


def test_a_revoked_key_ends_the_session_in_the_playground(
    visitor: Visitor, server: RunningServer
) -> None:
    key, key_id = make_key(server, "default", "inference")
    page = visitor.log_in(key)
    page.get_by_label("Prompt", exact=True).fill("Hello")
    assert server.admin("DELETE", f"/admin/keys/{key_id}").status_code == 204
    visitor.expect_fault("status of 401")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_text("The API key of your session was revoked.")).to_be_visible()


def test_an_expired_key_ends_the_session_with_the_next_click(
    visitor: Visitor, server: RunningServer
) -> None:
    expires_at = datetime.now(UTC) + timedelta(seconds=KEY_SECONDS)
    key, _ = make_key(server, "default", "admin", expires_at=expires_at.isoformat())
    page = visitor.log_in(key, "/adapters")
    headers = {"Authorization": f"Bearer {key}"}
    while httpx.get(f"{server.url}/admin/whoami", headers=headers).status_code == 200:
        time.sleep(0.2)
    follow_a_link(page)
    expect(page.get_by_text("Your session or its API key has expired.")).to_be_visible()


def test_a_tenant_sees_its_own_and_no_admin_pages(
    visiting: Visiting, server: RunningServer, make_files: MakeFiles
) -> None:
    upload(server, "harbour/pilot", make_files(11))
    key, _ = make_key(server, "harbour", "adapters", "inference")
    visitor = visiting(server.url)
    page = visitor.log_in(key, "/adapters")
    names = page.get_by_role("navigation", name="Pages").get_by_role("link").all_inner_texts()
    assert names == ["Overview", "Adapters", "Register", "Playground", "Usage", "Audit"]
    expect(page.get_by_role("link", name="harbour/pilot")).to_be_visible()
    expect(page.get_by_text("1 found", exact=True)).to_be_visible()
    page.get_by_role("link", name="harbour/pilot").click()
    expect(page.get_by_role("button", name="Promote…")).to_be_visible()
    expect(page.get_by_role("button", name="Pin…")).to_have_count(0)
    visitor.open("/register")
    expect(page.get_by_label("Tenant")).to_have_count(0)
    for path, status, heading in (
        ("/tenants", 403, "Not allowed"),
        ("/keys", 403, "Not allowed"),
        ("/loadtests", 403, "Not allowed"),
        ("/adapters/default/smart-home", 404, "Not found"),
        ("/usage?tenant=default", 404, "Not found"),
    ):
        visitor.expect_fault(f"status of {status}")
        visitor.open(path)
        expect(page.get_by_role("heading", name=heading)).to_be_visible()
        expect(page.get_by_role("main").get_by_role("table")).to_have_count(0)
