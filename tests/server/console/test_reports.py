"""Load-test reports: those of the data folder and nothing else, each in a sandbox."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from adapters_registry.records.tenants import create_tenant
from adapters_registry.registry import Registry
from server.auth import Keys
from server.console.pages import reports
from tests.server.console.conftest import Browser

HOSTILE = "<script>alert(1)</script>"


def keep(data_dir: Path, name: str, question: object = "How fast?", made_at: int = 1000) -> Path:
    folder = data_dir / reports.FOLDER / name
    folder.mkdir(parents=True)
    (folder / reports.SUMMARY).write_text(json.dumps({"question": question}))
    page = folder / reports.PAGE
    page.write_text(f"<title>{name}</title>{HOSTILE}")
    os.utime(page, (made_at, made_at))
    return folder


async def test_without_reports_the_page_says_how_to_keep_one(admin: Browser) -> None:
    page = await admin.open("/console/loadtests")
    assert page.status_code == 200
    assert "loraplex loadtest run" in page.text


async def test_a_report_is_listed_and_opens_in_a_sandbox(admin: Browser, tmp_path: Path) -> None:
    keep(tmp_path, "first run", HOSTILE)
    page = await admin.open("/console/loadtests")
    assert HOSTILE not in page.text
    link = re.search(r'href="(/console/loadtests/[^"]+)"', page.text)
    assert link
    report = await admin.open(link[1])
    assert "<title>first run</title>" in report.text
    assert report.headers["content-type"].startswith("text/html")
    policy = report.headers["content-security-policy"]
    assert policy.startswith("sandbox;")
    assert "script" not in policy.replace("default-src", "")
    assert "allow" not in policy


@pytest.mark.parametrize("summary", ["{", "[]", '{"question": 5}', "null"])
async def test_a_broken_summary_is_no_reason_to_fail(
    admin: Browser, tmp_path: Path, summary: str
) -> None:
    folder = keep(tmp_path, "broken")
    (folder / reports.SUMMARY).write_text(summary)
    page = await admin.open("/console/loadtests")
    assert page.status_code == 200
    assert ">broken<" in page.text


async def test_nothing_outside_of_the_folder_opens(admin: Browser, tmp_path: Path) -> None:
    keep(tmp_path, "real")
    secret = tmp_path / "outside"
    secret.mkdir()
    (secret / reports.PAGE).write_text("secret")
    (tmp_path / reports.FOLDER / "link").symlink_to(secret)
    linked = tmp_path / reports.FOLDER / "linked"
    linked.mkdir()
    (linked / reports.PAGE).symlink_to(secret / reports.PAGE)
    for name in ("nothing", "link", "linked", "..", "..%2Foutside", "%2e%2e", "real%00", "."):
        answer = await admin.open(f"/console/loadtests/{name}")
        assert "secret" not in answer.text, name
        assert answer.status_code in (200, 303, 307, 404), name
    listed = await admin.open("/console/loadtests")
    assert "1 reports" in listed.text


async def test_only_admins_see_reports(
    browser: Browser, registry: Registry, keys: Keys, tmp_path: Path
) -> None:
    keep(tmp_path, "real")
    registry.apply(create_tenant, "acme")
    await browser.log_in(keys.create("acme", ["adapters", "inference"]))
    for path in ("/console/loadtests", "/console/loadtests/real"):
        assert (await browser.open(path)).status_code == 403


async def test_the_list_has_pages(
    admin: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "PAGE_SIZE", 2)
    for number in range(5):
        keep(tmp_path, f"run-{number}", made_at=1000 + number)
    seen: list[str] = []
    path = "/console/loadtests"
    while path:
        page = await admin.open(path)
        seen += re.findall(r'href="/console/loadtests/(run-\d)"', page.text)
        following = re.search(r'<a href="([^"]+)" rel="next">', page.text)
        path = following[1] if following else ""
    assert seen == [f"run-{number}" for number in (4, 3, 2, 1, 0)]
