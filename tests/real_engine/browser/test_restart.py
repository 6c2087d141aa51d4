"""A server that goes away under an open page and comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from adapters_registry.registry import Registry
from tests.real_engine.browser.conftest import Visiting
from tests.real_engine.browser.fake_site import FakeSite

AWAY = "The server does not answer. This page tries again by itself."


@pytest.fixture
def site(registry: Registry, tmp_path: Path) -> Iterator[FakeSite]:
    site = FakeSite(registry, tmp_path)
    yield site
    site.stop()


def mark(page: Page) -> None:
    """Leave a mark that is lost when the page is loaded again."""
    page.evaluate("document.body.dataset.mark = true")


def wait_until_loaded_again(page: Page) -> None:
    expect(page.locator("body:not([data-mark])")).to_be_visible()


def test_a_live_page_says_that_the_server_is_away_and_comes_back_by_itself(
    visiting: Visiting, site: FakeSite
) -> None:
    visitor = visiting(site.url)
    visitor.expect_fault("ERR_CONNECTION_REFUSED")
    visitor.expect_fault("Failed to fetch")
    page = visitor.log_in(site.keys.create("default", ["admin"]), "/overview")
    expect(page.get_by_text(AWAY)).to_be_hidden()
    mark(page)
    site.stop()
    expect(page.get_by_text(AWAY)).to_be_visible()
    site.start()
    wait_until_loaded_again(page)
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    expect(page.get_by_text(AWAY)).to_be_hidden()


def test_a_click_while_the_server_is_away_is_not_lost_in_silence(
    visiting: Visiting, site: FakeSite
) -> None:
    visitor = visiting(site.url)
    visitor.expect_fault("ERR_CONNECTION_REFUSED")
    visitor.expect_fault("Failed to fetch")
    page = visitor.log_in(site.keys.create("default", ["admin"]), "/tenants")
    mark(page)
    site.stop()
    page.get_by_label("Search").press_sequentially("def")
    expect(page.get_by_text(AWAY)).to_be_visible()
    site.start()
    wait_until_loaded_again(page)
    expect(page.get_by_role("link", name="default", exact=True)).to_be_visible()


def test_the_playground_keeps_what_was_typed(visiting: Visiting, site: FakeSite) -> None:
    visitor = visiting(site.url)
    visitor.expect_fault("ERR_CONNECTION_REFUSED")
    page = visitor.log_in(site.keys.create("default", ["inference"]))
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill("A long prompt that nobody wants to type again")
    site.stop()
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_text(AWAY)).to_be_visible()
    expect(page.get_by_role("alert").filter(has_text="does not answer")).to_be_visible()
    site.start()
    expect(page.get_by_text(AWAY)).to_be_hidden()
    expect(prompt).to_have_value("A long prompt that nobody wants to type again")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_label("Answer of base")).to_have_text("hello")
