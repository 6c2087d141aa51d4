"""Calls to a running server, for all client commands."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from server.cli.console import fail
from server.settings import Settings, load_settings

if TYPE_CHECKING:
    import httpx

MAX_REASONS = 12
TIMEOUT_SECONDS = 600


class CallFailed(Exception):
    """The server does not answer, or answers with an error. The message says which."""


def call(method: str, path: str, **arguments: Any) -> httpx.Response:
    """Send a request to the server. An error is printed with its reasons and ends the command."""
    try:
        return send(method, path, **arguments)
    except CallFailed as error:
        fail(str(error))


def send(method: str, path: str, **arguments: Any) -> httpx.Response:
    """Send a request to the server.

    Raises:
        CallFailed: it does not answer, or answers with an error.
    """
    import httpx

    settings = load_settings()
    key = api_key(settings)
    if key is None:
        raise CallFailed(
            f"no API key: {settings.admin_key_path.absolute()} isn't there, and LORAPLEX_API_KEY "
            "isn't set. Set LORAPLEX_API_KEY to your key, or LORAPLEX_DATA_DIR to the server's "
            "data folder, which has the first admin's key"
        )
    headers = {"Authorization": f"Bearer {key}"}
    try:
        response = httpx.request(
            method,
            settings.url.rstrip("/") + path,
            headers=headers | arguments.pop("headers", {}),
            timeout=TIMEOUT_SECONDS,
            **arguments,
        )
        if response.is_error:
            message = _explain(response.json()["error"])
            raise CallFailed(message + _hint(response.status_code, settings))
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise CallFailed(f"no answer from {settings.url} (LORAPLEX_URL): {error}") from error
    return response


def api_key(settings: Settings) -> str | None:
    """Return the key to send: the one that is set, or the admin key in the data folder, or None."""
    file = settings.admin_key_path
    if settings.api_key is not None or not file.is_file():
        return settings.api_key
    try:
        return file.read_text().strip()
    except OSError as error:
        fail(f"can't read the key in {file.absolute()}: {error.strerror}")


def all_pages(path: str, query: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of every page of a listing."""
    rows: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        page = call("GET", path, params={**query, "limit": 1000, "after": after}).json()
        rows += page["data"]
        after = page["next"]
    return rows


def _explain(error: dict[str, Any]) -> str:
    """Return an error's message, or the first reasons of a rejection."""
    reasons = [f"  {r['code']}: {r['message']}" for r in error.get("reasons", [])]
    if not reasons:
        # The server's message names the API's parameter. Users of the command need the flag.
        return str(error["message"]).replace("?force=true", "--force")
    left_out = len(reasons) - MAX_REASONS
    more = [f"  and {left_out} more: loraplex adapters show"] if left_out > 0 else []
    return "\n".join(["the adapter was rejected:", *reasons[:MAX_REASONS], *more])


def _hint(status: int, settings: Settings) -> str:
    """Return where the key came from, if the server doesn't know it."""
    if status != HTTPStatus.UNAUTHORIZED:
        return ""
    named = settings.api_key is not None
    source = "LORAPLEX_API_KEY" if named else f"{settings.admin_key_path.absolute()}"
    return f" (the key is from {source})"
