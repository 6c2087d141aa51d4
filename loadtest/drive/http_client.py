"""Requests whose answers are read whole. Answers that are timed as they stream: `request.py`."""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx

from loadtest.errors import LoadTestError

MAX_SECONDS = 600
CONNECT_SECONDS = 10
KEEPALIVE_SECONDS = 4
"""A connection isn't used again after this: servers close idle ones, mostly after five seconds."""
MAX_ERROR_CHARACTERS = 300


@dataclass(frozen=True)
class HttpClient:
    """Sends requests to one server, with one key unless a request has its own."""

    url: str
    http: httpx.AsyncClient

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, url: str, key: str) -> AsyncIterator[HttpClient]:
        """Connect on first use, to the server itself: proxies of the environment aren't used."""
        async with httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(MAX_SECONDS, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=KEEPALIVE_SECONDS),
            verify=ssl.create_default_context(),
            trust_env=False,
        ) as http:
            yield cls(url.rstrip("/"), http)

    async def call(self, method: str, path: str, **arguments: Any) -> tuple[int, str]:
        """Send a request. Returns the answer's status and text.

        Raises:
            LoadTestError: no answer came.
        """
        try:
            response = await self.http.request(method, self.url + path, **arguments)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise LoadTestError(f"no answer from {self.url}{path}: {reason}") from error
        return response.status_code, response.text

    async def json(self, method: str, path: str, what: str = "", **arguments: Any) -> Any:
        """Send a request. Returns the JSON of its answer, or `{}` if the answer is empty.

        Raises:
            LoadTestError: no answer came, it refuses the request, or it isn't JSON. The message
                begins with `what`.
        """
        status, text = await self.call(method, path, **arguments)
        named = what or f"{method} {path}"
        if status >= 300:
            raise LoadTestError(f"{named}: {status} {text[:MAX_ERROR_CHARACTERS]}")
        try:
            return json.loads(text) if text else {}
        except ValueError as error:
            raise LoadTestError(f"{named}: not JSON: {text[:MAX_ERROR_CHARACTERS]}") from error
