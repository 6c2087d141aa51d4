"""The life of an adapter on its pages: registered, refused, promoted, split, rolled back."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.real_engine.browser.conftest import MakeFiles
from tests.real_engine.browser.people import upload
from tests.real_engine.browser.visitor import (
    Visitor,
    confirm,
    live_row,
    take_picture,
    version_row,
)
from tests.real_engine.questions import ask
from tests.real_engine.running_server import RunningServer

BYTES_PER_SECOND = 300_000
"""How fast an upload goes whose progress is watched."""
NUM_TOKENS, STREAM_MS = 200, 120_000
"""How long the answer is during which a version is promoted, and how long it may take."""
_NOTE_PHASES = """
window.phases = [];
new MutationObserver(() => window.phases.push(document.getElementById("phase").textContent))
  .observe(document.getElementById("phase"), { childList: true });
"""
_DROP = """
(files) => {
  const dropped = new DataTransfer();
  for (const [name, content] of files) {
    const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
    dropped.items.add(new File([bytes], name));
  }
  return dropped;
}
"""


def send_slowly(page: Page) -> None:
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.send(
        "Network.emulateNetworkConditions",
        {
            "offline": False,
            "latency": 0,
            "downloadThroughput": -1,
            "uploadThroughput": BYTES_PER_SECOND,
        },
    )


def drop(page: Page, files: list[Path]) -> None:
    """Drop files on the page, as from a folder's window."""
    content = [(file.name, b64encode(file.read_bytes()).decode()) for file in files]
    dropped = page.evaluate_handle(_DROP, content)
    page.locator("#drop").dispatch_event("drop", {"dataTransfer": dropped})


def start_registration(visitor: Visitor, server: RunningServer, adapter: str) -> Page:
    page = visitor.log_in(server.key, "/register")
    tenant, _, name = adapter.partition("/")
    server.admin("POST", "/admin/tenants", json={"name": tenant})
    page.get_by_label("Tenant").fill(tenant)
    page.get_by_label("Adapter", exact=True).fill(name)
    return page


def test_dropped_files_become_a_version_with_progress(
    visitor: Visitor, server: RunningServer, make_files: MakeFiles
) -> None:
    page = start_registration(visitor, server, "forge/anvil")
    page.get_by_label("Metadata").fill('{"evaluation": {"exact_match": 0.71}}')
    page.get_by_label("Make it live").check()
    drop(page, make_files(21, modules=("mlp.down_proj",)))
    expect(page.locator("#chosen")).to_contain_text("adapter_model.safetensors")
    send_slowly(page)
    page.evaluate(_NOTE_PHASES)
    page.get_by_role("button", name="Register", exact=True).click()
    verdict = page.get_by_role("alert").filter(has_text="forge/anvil@1 is ready, and live")
    expect(verdict).to_be_visible()
    phases = page.evaluate("window.phases")
    shares = [int(found[1]) for p in phases if (found := re.match(r"Sending: (\d+) %", p))]
    assert shares == sorted(shares)
    assert any(0 < share < 100 for share in shares), phases
    assert any(phase.startswith("Sent.") for phase in phases)
    page.get_by_role("link", name="Open the adapter").click()
    expect(live_row(page, 1)).to_contain_text("100 %")
    recorded = page.get_by_role("region", name="Evaluation and metadata")
    expect(recorded).to_contain_text("evaluation.exact_match")
    expect(recorded).to_contain_text("0.71")


def test_a_refused_adapter_shows_every_reason_and_can_be_sent_again(
    visitor: Visitor, server: RunningServer, make_files: MakeFiles
) -> None:
    page = start_registration(visitor, server, "forge/wrong")
    page.locator("input[type=file]").set_input_files(
        make_files(22, config={"r": 3, "use_dora": True})
    )
    visitor.expect_fault("status of 422")
    page.get_by_role("button", name="Register", exact=True).click()
    verdict = page.get_by_role("alert").filter(has_text="forge/wrong@1 is rejected")
    expect(verdict).to_be_visible()
    reasons = verdict.get_by_role("listitem").all_inner_texts()
    assert len(reasons) >= 2
    assert any("dora" in reason.lower() for reason in reasons)
    take_picture(page, "refused", whole=True)
    page.locator("input[type=file]").set_input_files(make_files(22))
    page.get_by_role("button", name="Register", exact=True).click()
    expect(page.get_by_role("alert").filter(has_text="forge/wrong@2 is ready")).to_be_visible()
    page.get_by_role("link", name="Open the adapter").click()
    expect(version_row(page, 1)).to_contain_text("rejected")
    expect(version_row(page, 2)).to_contain_text("ready")
    table = page.get_by_role("region", name="Versions", exact=True)
    for reason in reasons:
        expect(table).to_contain_text(reason.split()[0])


@pytest.mark.parametrize(
    ("name", "metadata", "message"),
    [
        ("Not A Name", "", "adapter name 'Not A Name' is not allowed"),
        ("fine", "{", "metadata"),
    ],
)
def test_what_the_form_says_wrongly_is_said_in_the_page(
    visitor: Visitor,
    server: RunningServer,
    make_files: MakeFiles,
    name: str,
    metadata: str,
    message: str,
) -> None:
    page = start_registration(visitor, server, f"forge/{name}")
    page.get_by_label("Metadata").fill(metadata)
    page.locator("input[type=file]").set_input_files(make_files(23))
    visitor.expect_fault("status of 4")
    page.get_by_role("button", name="Register", exact=True).click()
    expect(page.get_by_role("alert").filter(has_text=message)).to_be_visible()


def answer_of(page: Page, model: str) -> str:
    return str(page.get_by_label(f"Answer of {model}").inner_text())


def test_a_promotion_lets_a_running_stream_go_on(
    visitor: Visitor, server: RunningServer, make_files: MakeFiles
) -> None:
    adapter = "forge/storyteller"
    for seed in (31, 32):
        upload(server, adapter, make_files(seed))
    stream = visitor.log_in(server.key, f"/playground?model={adapter}")
    stream.get_by_label("The base").uncheck()
    stream.get_by_label("Prompt", exact=True).fill("Write a long story about a lighthouse.")
    stream.get_by_label("Longest answer").fill(str(NUM_TOKENS))
    stream.get_by_label("Temperature").fill("0")
    stream.get_by_role("button", name="Send").click()
    expect(stream.get_by_label(f"Answer of {adapter}")).not_to_be_empty()

    page = visitor.new_page()
    page.goto(f"/console/adapters/{adapter}")
    version_row(page, 2).get_by_role("button", name="Promote…").click()
    expect(page.get_by_role("dialog")).to_contain_text("1 request runs now")
    confirm(page, "Promote")
    expect(page.get_by_role("status").filter(has_text="@2 gets every request")).to_be_visible()
    expect(live_row(page, 2)).to_contain_text("100 %")

    so_far = len(answer_of(stream, adapter))
    expect(stream.get_by_text("All answers are complete.")).to_be_visible(timeout=STREAM_MS)
    expect(stream.get_by_text(f"{adapter}@1, found in")).to_be_visible()
    assert len(answer_of(stream, adapter)) > so_far
    expect(stream.locator("[data-fact=out]")).to_have_text(str(NUM_TOKENS))
    stream.get_by_label("Longest answer").fill("4")
    stream.get_by_role("button", name="Send").click()
    expect(stream.get_by_text(f"{adapter}@2, found in")).to_be_visible()


def test_a_canary_shows_both_sides_and_is_rolled_back(
    visitor: Visitor, server: RunningServer, make_files: MakeFiles
) -> None:
    adapter = "forge/bellows"
    for seed in (41, 42):
        upload(server, adapter, make_files(seed))
    for version, times in ((1, 3), (2, 2)):
        for _ in range(times):
            ask(server, f"{adapter}@{version}", "Hello", max_tokens=4)
    page = visitor.log_in(server.key, f"/adapters/{adapter}")
    stale = visitor.new_page()
    stale.goto(f"/console/adapters/{adapter}")
    open_canary(page, 25)
    confirm(page, "Split")
    expect(page.get_by_role("status").filter(has_text="@2 gets 25 %")).to_be_visible()
    for version, share, requests in ((1, "75 %", "3"), (2, "25 %", "2")):
        cells = live_row(page, version).get_by_role("cell")
        expect(cells.nth(0)).to_have_text(share)
        expect(cells.nth(1)).to_have_text(requests)

    visitor.expect_fault("status of 412")
    open_canary(stale, 50)
    confirm(stale, "Split")
    expect(stale.get_by_role("alert")).to_contain_text("changed")

    page.get_by_role("button", name="Roll back…").click()
    expect(page.get_by_role("dialog")).to_contain_text("means @1 again")
    confirm(page, "Roll back")
    expect(live_row(page, 1)).to_contain_text("100 %")
    expect(live_row(page, 2)).to_have_count(0)
    expect(page.get_by_role("listitem").filter(has_text="alias")).not_to_have_count(0)


def open_canary(page: Page, share: int) -> None:
    version_row(page, 2).get_by_role("button", name="Canary…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("slider").fill(str(share))
    expect(dialog).to_contain_text(f"Share of @2: {share} %")


def test_a_judged_canary_and_a_warm_promotion_begin_on_the_page(
    visitor: Visitor, server: RunningServer, make_files: MakeFiles
) -> None:
    adapter = "forge/tongs"
    for seed in (51, 52):
        upload(server, adapter, make_files(seed))
    page = visitor.log_in(server.key, f"/adapters/{adapter}")
    version_row(page, 2).get_by_role("button", name="Judge…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Steps, in per cent").fill("5, 100")
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    held_out = json.dumps({"messages": messages}).encode()
    dialog.get_by_label("Answers to held-out conversations").set_input_files(
        {"name": "held-out.jsonl", "mimeType": "application/jsonl", "buffer": held_out}
    )
    confirm(page, "Begin")
    begun = page.get_by_role("status").filter(has_text="@2 gets 5 % of the requests")
    expect(begun).to_contain_text("error_rate, first_token_p95, evaluation beside @1")
    expect(page.get_by_text("running at 5 %, beside @1")).to_be_visible()
    version_row(page, 2).get_by_role("button", name="Promote…").click()
    page.get_by_role("dialog").get_by_label("Warm").check()
    confirm(page, "Promote")
    expect(page.get_by_role("status").filter(has_text="The alias live means @2")).to_be_visible()
    expect(live_row(page, 2)).to_contain_text("100 %")
