"""Debian's chromium, and what people at the console have to work with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from adapters_registry.check.base import BaseSpec
from server.bundled_base import bundled_base_directory
from tests.adapter_recipe import Recipe
from tests.real_engine.browser.visitor import TIMEOUT_MS, Contexts, Visitor
from tests.real_engine.running_server import RunningServer

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
MAX_RANK = 16

Visiting = Callable[..., Visitor]


@pytest.fixture(scope="session", autouse=True)
def chromium_program() -> str:
    """The browser's program. It is asked for before any engine is started."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("chromium isn't installed (Debian's package chromium)")
    return program


@pytest.fixture(scope="package")
def chromium(chromium_program: str) -> Iterator[Browser]:
    """A browser without a window. It ends with this folder's tests: Playwright's event loop counts
    as running until then, and asynchronous tests need their own."""
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def contexts(chromium: Browser) -> Contexts:
    """What visitors leave to each other."""
    return Contexts(chromium)


@pytest.fixture(scope="package")
def sessions() -> dict[str, Any]:
    """The cookies of those who have logged in, by their key."""
    return {}


@pytest.fixture
def visiting(contexts: Contexts, sessions: dict[str, Any]) -> Iterator[Visiting]:
    """Lets someone visit a server; what goes wrong in a page fails the test."""
    visitors: list[Visitor] = []

    def visit(address: str, **options: Any) -> Visitor:
        visitors.append(Visitor(contexts, address, sessions, **options))
        return visitors[-1]

    yield visit
    for visitor in visitors:
        visitor.close()
    for visitor in visitors:
        visitor.check()


@pytest.fixture
def visitor(visiting: Visiting, server: RunningServer) -> Visitor:
    """Someone who is not logged in yet, at the server of the real engine."""
    return visiting(server.url)


@pytest.fixture(scope="module")
def real_base() -> BaseSpec:
    return BaseSpec.from_directory(bundled_base_directory(), MAX_RANK)


MakeFiles = Callable[..., list[Path]]


@pytest.fixture(scope="module")
def make_files(real_base: BaseSpec, tmp_path_factory: pytest.TempPathFactory) -> MakeFiles:
    """Make the two files of an adapter for the bundled base; arguments are those of `Recipe`."""

    def make(seed: int = 0, **recipe: Any) -> list[Path]:
        folder = tmp_path_factory.mktemp("adapter") / "files"
        return sorted(Recipe(**recipe).make(folder, real_base, seed).iterdir())

    return make
