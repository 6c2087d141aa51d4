"""Nothing that others named, recorded, asked or answered becomes a part of a page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from adapters_registry.registry import Registry
from tests.adapter_recipe import A, Tensors
from tests.real_engine.browser.conftest import MakeFiles, Visiting
from tests.real_engine.browser.fake_site import FakeSite
from tests.real_engine.browser.people import upload
from tests.real_engine.browser.visitor import Visitor
from tests.real_engine.running_server import RunningServer

IMAGE = "<img src=x onerror=window.injected=1>"
SCRIPT = "</script><script>window.injected=1</script>"
ATTRIBUTE = "\"' onmouseover=window.injected=1 autofocus onfocus=window.injected=1 x=\"'"
ADDRESS = "javascript:window.injected=1"
HOSTILE = f"{IMAGE}{SCRIPT}{ATTRIBUTE}"
_STRANGE_PARTS = """
[...document.querySelectorAll("*")].filter((each) =>
  (each.localName === "img" && each.getAttribute("src") === "x") ||
  (each.localName === "script" && !each.src) ||
  ["href", "src", "action"].some((name) => each.getAttribute(name)?.startsWith("javascript:")) ||
  [...each.attributes].some((attribute) => /^on/i.test(attribute.name))
).map((each) => each.outerHTML)
"""
_INJECT = """
(html) => new Promise((resolve) => {
  document.body.insertAdjacentHTML("beforeend", html);
  document.body.lastElementChild.addEventListener("error", () => resolve(true));
})
"""


def assert_nothing_injected(page: Page) -> None:
    """Whether policy would have stopped it or not."""
    assert page.evaluate("window.injected") is None
    assert page.evaluate(_STRANGE_PARTS) == []


def strange_tensors(tensors: Tensors) -> Tensors:
    return {**tensors, f"base_model.{HOSTILE}": tensors[A].copy()}


def test_recorded_facts_and_reasons_are_text(
    visitor: Visitor, server: RunningServer, make_files: MakeFiles
) -> None:
    metadata = {HOSTILE: HOSTILE, "evaluation": {IMAGE: 0.5, "note": SCRIPT, "link": ADDRESS}}
    upload(server, "hostile/well-made", make_files(51), metadata)
    upload(server, "hostile/well-made", make_files(52), {HOSTILE: "other"})
    upload(server, "hostile/refused", make_files(53, bend=strange_tensors), metadata)
    server.admin("POST", "/admin/keys", json={"tenant": "hostile", "label": IMAGE})
    page = visitor.log_in(server.key, "/adapters/hostile/well-made")
    expect(page.get_by_role("region", name="Evaluation and metadata")).to_contain_text(IMAGE)
    for path, shown in (
        ("/adapters/hostile/well-made", SCRIPT),
        ("/adapters/hostile/refused", "onerror"),
        ("/keys?tenant=hostile", IMAGE),
        ("/audit?tenant=hostile", "hostile/well-made"),
        ("/usage?tenant=hostile", "Usage"),
    ):
        visitor.open(path)
        expect(page.locator("main")).to_contain_text(shown)
        for opener in page.locator("[data-opens]").all():
            opener.click()
            page.keyboard.press("Escape")
        assert_nothing_injected(page)


def test_a_refused_upload_shows_its_reasons_as_text(
    visitor: Visitor, server: RunningServer, make_files: MakeFiles
) -> None:
    page = visitor.log_in(server.key, "/register")
    page.get_by_label("Adapter", exact=True).fill("refused")
    page.get_by_label("Tenant").fill("hostile")
    page.get_by_label("Metadata").fill(json.dumps({HOSTILE: HOSTILE}))
    page.locator("input[type=file]").set_input_files(make_files(54, bend=strange_tensors))
    visitor.expect_fault("status of 422")
    page.get_by_role("button", name="Register", exact=True).click()
    expect(page.get_by_role("alert").filter(has_text=IMAGE)).to_be_visible()
    assert_nothing_injected(page)


ADDRESSES = (
    "/adapters?search={}&after={}",
    "/tenants?search={}",
    "/keys?tenant={}",
    "/usage?tenant=default&adapter={}",
    "/audit?subject={}&action={}",
    "/playground?model={}",
    "/adapters/default/{}",
    "/tenants/{}",
    "/{}",
)


def test_addresses_are_text(visiting: Visiting, server: RunningServer) -> None:
    visitor, stranger = visiting(server.url), visiting(server.url)
    visitor.log_in(server.key)
    addresses = [(visitor, path) for path in ADDRESSES] + [(stranger, "/login?why={}&next={}")]
    for someone, path in addresses:
        for text in (HOSTILE, ADDRESS):
            status = someone.open(path.replace("{}", quote(text, safe="")))
            if status >= 400:
                someone.expect_fault(f"status of {status}")
            assert_nothing_injected(someone.page)


def test_a_report_of_a_load_test_is_shut_in(visitor: Visitor, server: RunningServer) -> None:
    name = "<img src=x onerror=window.injected=1>"
    folder = server.data_dir / "loadtests" / name
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"question": HOSTILE}))
    (folder / "report.html").write_text("<h1>Report</h1><script>document.title = 'ran'</script>")
    page = visitor.log_in(server.key, "/loadtests")
    expect(page.get_by_role("region", name="Reports")).to_contain_text(SCRIPT)
    assert_nothing_injected(page)
    visitor.expect_fault("Blocked script execution")
    with page.context.expect_page() as opened:
        page.get_by_role("link", name=name).click()
    report = opened.value
    expect(report.get_by_role("heading", name="Report")).to_be_visible()
    assert report.title() != "ran"
    assert report.evaluate("origin") == "null"


@pytest.fixture
def hostile_site(registry: Registry, tmp_path: Path) -> Iterator[FakeSite]:
    site = FakeSite(registry, tmp_path, says=HOSTILE)
    yield site
    site.stop()


def test_prompts_and_answers_are_text(visiting: Visiting, hostile_site: FakeSite) -> None:
    visitor = visiting(hostile_site.url)
    page = visitor.log_in(hostile_site.keys.create("default", ["inference"]))
    page.get_by_label("Prompt", exact=True).fill(HOSTILE)
    page.get_by_label("Instructions").fill(HOSTILE)
    page.get_by_label("Adapter 1").fill(IMAGE)
    visitor.expect_fault("status of 404")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_label("Answer of base")).to_have_text(HOSTILE)
    expect(page.get_by_role("alert").filter(has_text=IMAGE)).to_be_visible()
    for button in ("As curl", "As Python (openai)"):
        page.locator("#panes > section").first.get_by_role("button", name=button).click()
        expect(page.get_by_label("Code", exact=True)).to_contain_text("onmouseover")
        page.get_by_role("button", name="Close", exact=True).click()
    assert_nothing_injected(page)


def test_the_watch_sees_what_it_is_there_to_see(visiting: Visiting, server: RunningServer) -> None:
    """Otherwise the tests above could not fail."""
    visitor = visiting(server.url)
    page = visitor.log_in(server.key)
    visitor.expect_fault("policy violation: script-src")
    visitor.expect_fault("violates the following Content Security Policy")
    visitor.expect_fault("status of 404")  # of the picture
    visitor.expect_fault("of a script")
    page.evaluate(_INJECT, IMAGE)
    page.evaluate("setTimeout(() => { throw new Error('of a script'); })")
    assert len(page.evaluate(_STRANGE_PARTS)) == 1
