"""`docs/structures.md` against a real request and a real upload through the app.

A profile function notes which of our files run first, second, and so on. The page must name each of
them, in that order: what a step names runs after what the steps before it name.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

from adapters_registry.records.catalog import VersionRecord
from tests.server.answers import CHAT, files_of
from tests.tiny import AdapterFactory

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "structures.md").read_text()
OUTSIDE = re.compile(r"server/engine/|.*\.c$|adapters_registry/content/origin.py")
"""What the fake engine stands in for, and the origin, which this app doesn't have."""


def steps(heading: str) -> list[list[str]]:
    """Return the files that each numbered step below a heading names, each at its first mention."""
    section = PAGE.split(f"\n## {heading}")[1].split("\n## ")[0]
    seen: set[str] = set()
    found = []
    for step in re.split(r"^\d+\. ", section, flags=re.MULTILINE)[1:]:
        named = [f for f in re.findall(r"`([\w/]+\.\w+)`", step) if f not in seen]
        seen.update(named)
        found.append([file for file in named if not OUTSIDE.match(file)])
    return found


@contextmanager
def traced() -> Iterator[list[str]]:
    """Yield a list of our files, in the order in which a function of each is first called."""
    files: dict[str, None] = {}

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(f"{ROOT}/") and frame.f_code.co_name != "<module>":
            files.setdefault(path.removeprefix(f"{ROOT}/"))

    order: list[str] = []
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield order
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        order += [f for f in files if f.startswith(("server/", "adapters_registry/"))]


def compare(named: list[list[str]], order: list[str], aside: set[str]) -> None:
    """Check that a page's steps name what ran, in its order. `aside`: files of every request."""
    known = {file for step in named for file in step}
    idle, unnamed = known - set(order), set(order) - known - aside
    assert not idle, f"the page names {idle}, which didn't run; these did: {order}"
    assert not unnamed, f"the page doesn't name {unnamed}; these ran: {order}"
    for i, step in enumerate(named):
        for file in step:
            before = order.index(file)
            for later in (f for after in named[i + 1 :] for f in after):
                assert before < order.index(later), f"{file} runs after {later}"


ASIDE = {
    "adapters_registry/records/database.py",
    "adapters_registry/records/tables.py",
    "server/auth.py",
    "server/errors/__init__.py",
    "server/lifecycle.py",
    "server/metrics.py",
    "server/workers.py",
}
"""Small parts that many steps use."""


async def test_a_chat_request(client: httpx.AsyncClient, home: VersionRecord) -> None:
    await client.get("/livez")  # the first request puts the middleware together
    with traced() as order:
        response = await client.post(CHAT, json={"model": "home"})
    assert response.status_code == 200
    assert len(steps("One chat request")) == 10
    compare(steps("One chat request"), order, ASIDE)


async def test_an_upload(client: httpx.AsyncClient, make_adapter: AdapterFactory) -> None:
    files = files_of(make_adapter())
    await client.get("/livez")
    with traced() as order:
        response = await client.post("/admin/adapters?wait=true", data={"name": "new"}, files=files)
    assert response.status_code == 201
    assert len(steps("One upload")) == 8
    of_every_request = {
        file for file in order if file.startswith(("server/middleware/", "server/request_log/"))
    }
    of_a_lease = {file for file in order if file.startswith("server/residency/")}
    aside = ASIDE | of_every_request | of_a_lease | {"adapters_registry/records/keys.py"}
    compare(steps("One upload"), order, aside)
