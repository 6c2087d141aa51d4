"""Makes HTML of templates. Every value is escaped, whatever an adapter or a tenant calls itself."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from adapters_registry.records.tables import now
from server.console.navigation import place_of, places_for

STATIC = Path(__file__).with_name("static")
TEMPLATES = Path(__file__).with_name("templates")
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
"""No script and no style stands in a page itself, so that none can be smuggled in."""
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
_UNITS = ("B", "KB", "MB", "GB", "TB")


class Renderer:
    """Renders the templates of this package."""

    def __init__(self) -> None:
        self._environment = Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        filters = {
            "bytes": format_bytes,
            "seconds": format_seconds,
            "count": format_count,
            "ago": format_ago,
            "moment": format_moment,
            "money": format_money,
            "json": json.dumps,
            "short_digests": shorten_digests,
        }
        self._environment.filters.update(filters)
        self._environment.globals["static"] = _static_urls().__getitem__

    def page(
        self,
        request: Request,
        template: str,
        *,
        status: int = 200,
        headers: dict[str, str] | None = None,
        **values: Any,
    ) -> HTMLResponse:
        """Return the page, or part of one, that a template makes of the values."""
        caller = getattr(request.state, "caller", None)
        common = {
            "caller": caller,
            "csrf_token": getattr(request.state, "csrf_token", ""),
            "places": places_for(caller) if caller else [],
            "place": place_of(request.scope["path"]),
            "url": request.url,
        }
        text = self._environment.get_template(template).render(common | values)
        return HTMLResponse(text, status, HEADERS | (headers or {}))


def is_partial(request: Request) -> bool:
    """Whether a script of ours asks for a part of a page, and not the browser for a page."""
    return request.headers.get("hx-request") == "true"


def format_bytes(count: float) -> str:
    """Return a size as `1.5 MB`."""
    unit = 0
    while count >= 999.5 and unit < len(_UNITS) - 1:
        count, unit = count / 1000, unit + 1
    digits = 1 if unit and count < 99.95 else 0
    return f"{count:.{digits}f} {_UNITS[unit]}"


def format_seconds(seconds: float | None) -> str:
    """Return a duration as `850 ms` or `2.1 s`; a dash if there is none."""
    if seconds is None:
        return "–"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 99.95 else f"{seconds:.0f} s"


def format_count(number: int) -> str:
    """Return a number with its thousands apart: `12,345`."""
    return f"{number:,}"


def format_money(amount: float, currency: str) -> str:
    """Return an amount with its currency: `1,234.50 EUR`."""
    return f"{amount:,.2f} {currency}".rstrip()


def format_moment(moment: datetime) -> str:
    """Return a moment in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def format_ago(moment: datetime) -> str:
    """Return how long ago a moment was: `5 min ago`."""
    seconds = (now() - moment).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now" if seconds < 5 else f"{seconds:.0f} s ago"


def shorten_digests(text: str) -> str:
    """Return the text with the first twelve characters of each digest."""
    return _DIGEST.sub(r"\1…", text)


def _static_urls() -> dict[str, str]:
    """Each file's URL, by name. It changes with the file: browsers may keep the file for ever."""
    return {
        file.name: f"/console/static/{file.name}?v={_digest(file)}"
        for file in STATIC.iterdir()
        if file.is_file()
    }


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]
