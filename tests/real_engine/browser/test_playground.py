"""The playground: the base and adapters answer side by side."""

from __future__ import annotations

import os
import subprocess
import sys

from playwright.sync_api import Page, expect

from tests.real_engine.browser.visitor import Visitor, take_picture
from tests.real_engine.questions import LIGHTS
from tests.real_engine.running_server import RunningServer

MODELS = ("base", "smart-home", "icd10-chapter")


def ask_all(page: Page) -> None:
    """Ask the base and both demo adapters, with the probabilities of their tokens."""
    page.get_by_label("Prompt", exact=True).fill(LIGHTS)
    page.get_by_label("Adapter 1").fill(MODELS[1])
    page.get_by_label("Adapter 2").fill(MODELS[2])
    page.get_by_label("Longest answer").fill("40")
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Show where the answers begin to differ").check()
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_text("All answers are complete.")).to_be_visible()


def test_the_base_and_two_adapters_answer_side_by_side(
    visitor: Visitor, server: RunningServer
) -> None:
    page = visitor.log_in(server.key, "/playground")
    ask_all(page)
    expect(page.get_by_label("Answer of smart-home")).to_contain_text("HassTurnOn")
    answers = [page.get_by_label(f"Answer of {model}").inner_text() for model in MODELS]
    assert all(answers)
    assert len(set(answers)) == len(MODELS)
    panes = page.locator("#panes > section")
    tops = [panes.nth(i).bounding_box() for i in range(len(MODELS))]
    assert len({box["y"] for box in tops if box}) == 1, "they stand side by side"
    for index in range(len(MODELS)):
        pane = panes.nth(index)
        assert pane.locator("[data-fact=first]").inner_text().endswith(" ms")
        assert int(pane.locator("[data-fact=out]").inner_text()) > 0
        assert pane.locator("[data-fact=request]").inner_text() != "–"
    assert float(panes.nth(1).locator("[data-fact=rate]").inner_text()) > 0
    expect(panes.nth(1)).to_contain_text("default/smart-home@1, found in:")
    parting = page.locator("#parting")
    expect(parting.get_by_role("heading")).to_have_text(
        ["base and smart-home", "base and icd10-chapter"]
    )
    expect(parting).to_contain_text("They differ from token")
    expect(parting).to_contain_text("(chosen)")
    take_picture(page, "playground", whole=True)


def test_the_code_that_is_shown_sends_the_same_request(
    visitor: Visitor, server: RunningServer
) -> None:
    page = visitor.log_in(server.key, "/playground")
    ask_all(page)
    answer = page.get_by_label("Answer of smart-home").inner_text()
    pane = page.locator("#panes > section").nth(1)
    environment = {**os.environ, "LORAPLEX_API_KEY": server.key}
    printed = {}
    for button, command in (
        ("As curl", ["bash", "-c"]),
        ("As Python (openai)", [sys.executable, "-c"]),
    ):
        pane.get_by_role("button", name=button).click()
        code = page.get_by_label("Code", exact=True).inner_text()
        page.get_by_role("button", name="Close", exact=True).click()
        done = subprocess.run(
            [*command, code], capture_output=True, text=True, env=environment, timeout=60
        )
        assert done.returncode == 0, done.stderr
        printed[button] = done.stdout
    assert printed["As Python (openai)"].strip() == answer
    assert "HassTurnOn" in printed["As curl"]


def test_names_are_suggested_and_a_wrong_one_is_said_in_its_pane(
    visitor: Visitor, server: RunningServer
) -> None:
    page = visitor.log_in(server.key, "/playground")
    page.get_by_label("Adapter 1").press_sequentially("smart-home")
    options = page.locator("#models option")
    expect(options.first).to_have_attribute("value", "smart-home")
    values = options.evaluate_all("options => options.map((option) => option.value)")
    assert {"smart-home@live", "smart-home@1"} <= set(values)
    page.get_by_label("Adapter 1").fill("nobody")
    page.get_by_label("The base").uncheck()
    page.get_by_label("Prompt", exact=True).fill("Hello")
    visitor.expect_fault("status of 404")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert").filter(has_text="nobody")).to_be_visible()
    expect(page.get_by_role("button", name="Send")).to_be_enabled()


def test_an_answer_can_be_stopped(visitor: Visitor, server: RunningServer) -> None:
    page = visitor.log_in(server.key, "/playground")
    page.get_by_label("Prompt", exact=True).fill("Write a long story about a lighthouse.")
    page.get_by_label("Longest answer").fill("2000")
    page.get_by_label("Prompt", exact=True).press("Control+Enter")
    expect(page.get_by_label("Answer of base")).not_to_be_empty()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("alert").filter(has_text="Stopped.")).to_be_visible()
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
