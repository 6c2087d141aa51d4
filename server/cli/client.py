"""What client commands share: one call to a running server."""

from __future__ import annotations

from typing import Any

import httpx

from server.cli.console import fail
from server.settings import Settings, load_settings

MAX_REASONS = 12
TIMEOUT_SECONDS = 600


def call(method: str, path: str, **arguments: Any) -> httpx.Response:
    """One request to the server; an error is printed, with every reason, and ends with code 1."""
    settings = load_settings()
    key = api_key(settings)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        response = httpx.request(
            method,
            settings.url.rstrip("/") + path,
            headers=headers | arguments.pop("headers", {}),
            timeout=TIMEOUT_SECONDS,
            **arguments,
        )
        if response.is_error:
            fail(_explain(response.json()["error"]))
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        fail(f"no answer from {settings.url} (LORAPLEX_URL): {error}")
    return response


def api_key(settings: Settings) -> str | None:
    """The key that clients send: the one that is set, or the first admin's in the data folder."""
    if settings.api_key is None and settings.admin_key_path.is_file():
        return settings.admin_key_path.read_text().strip()
    return settings.api_key


def _explain(error: dict[str, Any]) -> str:
    """The message, or the reasons of a rejection; the server keeps those left out here."""
    reasons = [f"  {r['code']}: {r['message']}" for r in error.get("reasons", [])]
    if not reasons:
        return str(error["message"])
    left_out = len(reasons) - MAX_REASONS
    more = [f"  and {left_out} more: loraplex adapters show"] if left_out > 0 else []
    return "\n".join(["the adapter was rejected:", *reasons[:MAX_REASONS], *more])
