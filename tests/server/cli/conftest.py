"""An app that commands reach as if it were a server."""

from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from server.auth import Keys


@pytest.fixture
def served(app: FastAPI, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The commands' requests reach the app; they carry an admin key."""
    monkeypatch.setenv("LORAPLEX_URL", "http://testserver")
    monkeypatch.setenv("LORAPLEX_API_KEY", keys.create("default", ["admin"]))
    with TestClient(app) as client:

        def request(
            method: str, url: str, *, timeout: float, **arguments: object
        ) -> httpx.Response:
            return client.request(method, url, **arguments)  # type: ignore[arg-type,return-value]

        monkeypatch.setattr(httpx, "request", request)
        yield
