"""How each page looks, in light and dark, on a phone, to a screen reader, and by keyboard."""

from __future__ import annotations

from typing import Any

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Locator, Page, expect

from tests.real_engine.browser import scene
from tests.real_engine.browser.conftest import MakeFiles, Visiting
from tests.real_engine.browser.people import upload
from tests.real_engine.browser.test_playground import ask_all
from tests.real_engine.browser.visitor import (
    DESKTOP,
    PHONE,
    Visitor,
    live_row,
    take_picture,
    version_row,
)
from tests.real_engine.running_server import RunningServer

PAGES = {
    "overview": "/overview",
    "adapters": "/adapters",
    "adapter": f"/adapters/{scene.ADAPTER}",
    "register": "/register",
    "playground": "/playground",
    "usage": "/usage",
    "tenants": "/tenants",
    "tenant": f"/tenants/{scene.TENANT}",
    "keys": "/keys?tenant=acme",
    "audit": "/audit?tenant=acme",
    "loadtests": "/loadtests",
    "error": "/nowhere",
}
GRAVE = {"serious", "critical"}
MAX_TABS = 80
_RUN_AXE = "([within, options]) => axe.run(within ?? document, options)"
_FOCUS = """
() => {
  const focused = document.activeElement;
  const box = focused.getBoundingClientRect();
  const style = getComputedStyle(focused);
  return {
    name: focused.getAttribute("aria-label") ?? focused.labels?.[0]?.innerText ?? focused.innerText,
    visible: box.width > 0 && box.height > 0 && box.bottom > 0 && box.top < innerHeight,
    outlined: style.outlineStyle !== "none" && style.outlineWidth !== "0px",
  };
}
"""


@pytest.fixture(scope="module")
def lived_in(server: RunningServer, make_files: MakeFiles) -> RunningServer:
    """The server, after it was used for a while."""
    scene.set_up(server, make_files)
    return server


def show(visitor: Visitor, key: str, name: str) -> Page:
    """Open a page, with all that appears on it after a while."""
    if name == "error":
        visitor.expect_fault("status of 404")
    page = visitor.log_in(key, PAGES[name])
    if name == "playground":
        ask_all(page)
    if name in ("overview", "usage"):
        expect(page.locator(".uplot").first).to_be_visible()
    return page


def grave_findings(page: Page, within: str | None = None, **options: Any) -> list[str]:
    """Return what axe finds that keeps people from using a page, or what a selector finds in it."""
    if not page.evaluate("Boolean(window.axe)"):
        page.evaluate(AXE_SCRIPT)
    found = page.evaluate(_RUN_AXE, [within, {"resultTypes": ["violations"], **options}])
    return [
        f"{each['id']}: {node['html']} {node['failureSummary']}"
        for each in found["violations"]
        if each["impact"] in GRAVE
        for node in each["nodes"]
    ]


def one_of_each_kind(openers: list[Locator]) -> list[Locator]:
    """Return a button for each kind of dialog: `promote-1` and `promote-2` are of one kind."""
    kinds = {(each.get_attribute("data-opens") or "").split("-")[0]: each for each in openers}
    return list(kinds.values())


def assert_fits(page: Page) -> None:
    """Nothing needs scrolling sideways but tables, which scroll by themselves."""
    width, view = page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert width <= view


def assert_has_its_place(page: Page, *, is_in_navigation: bool) -> None:
    """A screen reader finds one heading, a title, and where in the navigation the page is."""
    assert page.get_by_role("heading", level=1).count() == 1
    assert page.locator("nav [aria-current=page]").count() == is_in_navigation
    assert page.title().endswith("· Loraplex")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_used_by_everyone(
    visitor: Visitor, lived_in: RunningServer, name: str
) -> None:
    page = show(visitor, lived_in.key, name)
    take_picture(page, name)
    assert_has_its_place(page, is_in_navigation=name != "error")
    assert not grave_findings(page)
    for opener in one_of_each_kind(page.locator("[data-opens]").all()):
        opener.click()
        assert not grave_findings(page, "dialog[open]")
        page.keyboard.press("Escape")
        expect(opener).to_be_focused()
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    assert not grave_findings(page, runOnly={"type": "rule", "values": ["color-contrast"]})
    take_picture(page, f"{name}-dark")
    page.set_viewport_size(PHONE)
    assert_fits(page)
    take_picture(page, f"{name}-phone")


def test_the_log_in_can_be_used_by_everyone(visiting: Visiting, lived_in: RunningServer) -> None:
    visitor = visiting(lived_in.url)
    visitor.open("/login?why=expired")
    for scheme in ("light", "dark"):
        visitor.page.emulate_media(color_scheme=scheme)
        assert not grave_findings(visitor.page)
    visitor.page.set_viewport_size(PHONE)
    assert_fits(visitor.page)
    take_picture(visitor.page, "login")


def test_axe_and_the_rule_of_width_find_what_they_are_there_to_find(
    visitor: Visitor, lived_in: RunningServer
) -> None:
    """Otherwise the tests above could not fail."""
    page = show(visitor, lived_in.key, "adapters")
    page.evaluate("document.querySelector('.brand img').removeAttribute('alt')")
    page.evaluate("document.querySelector('h1').style.color = '#bbb'")
    found = {finding.split(":")[0] for finding in grave_findings(page)}
    assert {"image-alt", "color-contrast"} <= found
    assert any(finding.startswith("color-contrast") for finding in grave_findings(page, "main"))
    page.evaluate("document.querySelector('h1').style.minWidth = '200vw'")
    with pytest.raises(AssertionError):
        assert_fits(page)


def tab_to(page: Page, name: str) -> None:
    """Press Tab until what has this name has the focus. The focus can be seen all the way."""
    seen: list[str] = []
    for _ in range(MAX_TABS):
        page.keyboard.press("Tab")
        focus = page.evaluate(_FOCUS)
        seen.append((focus["name"] or "").strip())
        assert focus["visible"], f"the focus is out of sight: {seen}"
        assert focus["outlined"], f"the focus cannot be seen: {seen}"
        if seen[-1] == name:
            return
    raise AssertionError(f"Tab never leads to {name}: {seen}")


def test_a_version_is_promoted_by_keyboard_alone(
    visiting: Visiting, server: RunningServer, make_files: MakeFiles
) -> None:
    for seed in (71, 72):
        upload(server, "keys-only/piano", make_files(seed))
    visitor = visiting(server.url, viewport=DESKTOP)
    page, keyboard = visitor.page, visitor.page.keyboard
    visitor.open("/login")
    expect(page.get_by_label("API key")).to_be_focused()
    keyboard.type(server.key)
    keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    tab_to(page, "Skip to the content")
    tab_to(page, "Adapters")
    keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Adapters")).to_be_visible()
    tab_to(page, "Search")
    keyboard.type("keys-only")
    expect(page.get_by_text("1 found", exact=True)).to_be_visible()
    tab_to(page, "keys-only/piano")
    keyboard.press("Enter")
    expect(live_row(page, 1)).to_contain_text("100 %")
    tab_to(page, "Promote…")
    keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Promote @2")
    expect(dialog).to_be_visible()
    keyboard.press("Escape")
    expect(version_row(page, 2).get_by_role("button", name="Promote…")).to_be_focused()
    keyboard.press("Enter")
    tab_to(page, "Promote")
    keyboard.press("Enter")
    expect(live_row(page, 2)).to_contain_text("100 %")
    expect(page.get_by_role("main")).to_be_focused()
