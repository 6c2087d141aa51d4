"""Load-test reports that are kept in the data folder, for admins."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Query, Request
from fastapi.responses import FileResponse, Response

from server.api.routes import Routes
from server.auth import require_admin
from server.console.parts import Parts
from server.console.rendering import HEADERS
from server.errors import NotFound

FOLDER = "loadtests"
"""In the data folder: a folder for each report, as `loraplex loadtest ... --out` writes it."""
PAGE, SUMMARY = "report.html", "summary.json"
PAGE_SIZE = 50
MAX_PAGE = 1_000_000
MAX_SUMMARY_BYTES = 16 << 20
_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""A report has styles and no scripts. In its sandbox it has neither a session nor an origin."""


@dataclass(frozen=True)
class ReportEntry:
    """A report in the list."""

    name: str
    made_at: datetime
    question: str
    """What the load test was to find out; empty if the report does not say."""


def router(parts: Parts) -> Routes:
    """Return the routes that list and open reports."""
    routes = Routes(prefix="/loadtests", dependencies=[Depends(require_admin)])
    folder = parts.services.settings.data_dir / FOLDER

    @routes.get("")
    async def list_reports(
        request: Request, page: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 1
    ) -> Response:
        """Show the reports, the newest first, a page at a time."""
        first = (page - 1) * PAGE_SIZE
        reports, num_reports = await parts.workers.run(_read, folder, first)
        return parts.renderer.page(
            request,
            "loadtests.html",
            reports=reports,
            num_reports=num_reports,
            page=page,
            has_next=num_reports > first + PAGE_SIZE,
            folder=str(folder),
        )

    @routes.get("/{name}")
    async def open_report(name: str) -> Response:
        """Open a report, shut off from the console."""
        file = await parts.workers.run(_find, folder, name)
        headers = HEADERS | {"content-security-policy": _POLICY}
        return FileResponse(file, headers=headers, media_type="text/html; charset=utf-8")

    return routes


def _reports(folder: Path) -> dict[str, Path]:
    """Return the page of each report by name. Links are left out: they may lead anywhere."""
    try:
        entries = [entry for entry in folder.iterdir() if not entry.is_symlink()]
    except OSError:  # no report was ever kept
        return {}
    pages = {entry.name: entry / PAGE for entry in entries}
    return {n: page for n, page in pages.items() if page.is_file() and not page.is_symlink()}


def _read(folder: Path, first: int) -> tuple[list[ReportEntry], int]:
    times = {name: page.stat().st_mtime for name, page in _reports(folder).items()}
    newest = sorted(times, key=lambda name: (times[name], name), reverse=True)
    shown = newest[first : first + PAGE_SIZE]
    return [
        ReportEntry(name, datetime.fromtimestamp(times[name], UTC), _question(folder / name))
        for name in shown
    ], len(newest)


def _find(folder: Path, name: str) -> Path:
    page = _reports(folder).get(name)
    if page is None:
        raise NotFound("there is no such report")
    return page


def _question(report: Path) -> str:
    summary = report / SUMMARY
    try:
        if summary.is_symlink() or summary.stat().st_size > MAX_SUMMARY_BYTES:
            return ""
        found = json.loads(summary.read_bytes())
    except (OSError, ValueError):
        return ""
    question = found.get("question") if isinstance(found, dict) else None
    return question if isinstance(question, str) else ""
