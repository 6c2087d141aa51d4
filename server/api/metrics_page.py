"""The text of `/metrics`, which is made at most once a second, however many clients ask."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

from adapters_registry.registry import Registry
from server.api.registry_metrics import registry_metrics
from server.errors import Unauthenticated
from server.residency.leases import Leases
from server.residency.metrics import residency_metrics
from server.workers import Workers

MAX_AGE_SECONDS = 1.0
"""Prometheus asks every few seconds. Clients that ask more often get the same page again."""


class MetricsPage:
    """Prometheus metrics, ours and vLLM's, as text."""

    def __init__(
        self,
        registry: Registry,
        leases: Leases,
        max_loras: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives seconds and never goes back."""
        self._content, self._leases, self._max_loras = registry.content, leases, max_loras
        self._of_the_registry = registry_metrics(registry)
        self._clock = clock
        self._making = asyncio.Lock()
        self._workers = Workers("metrics", 1)
        self._text, self._made_at = b"", -MAX_AGE_SECONDS

    async def text(self) -> bytes:
        """Return the page. Calls at the same time wait for one page and share it."""
        async with self._making:
            if self._clock() - self._made_at >= MAX_AGE_SECONDS:
                self._text = await self._make()
                self._made_at = self._clock()
            return self._text

    async def _make(self) -> bytes:
        disk_bytes = self._content.num_bytes()
        of_residency = residency_metrics(self._leases.snapshot(), self._max_loras, disk_bytes)
        parts = (REGISTRY, self._of_the_registry, of_residency)
        return await self._workers.run(lambda: b"".join(map(generate_latest, parts)))


def add_metrics(app: FastAPI, page: MetricsPage, scrape_token: str | None) -> None:
    """Add `/metrics`. With a token, scrapers send it as `Authorization: Bearer TOKEN`."""

    @app.get("/metrics", tags=["operations"])
    async def scrape(request: Request) -> Response:
        """Prometheus metrics, ours and vLLM's."""
        if scrape_token is not None:
            _require(scrape_token, request.headers.get("authorization", ""))
        return Response(await page.text(), media_type=CONTENT_TYPE_LATEST)


def _require(token: str, authorization: str) -> None:
    scheme, _, given = authorization.partition(" ")
    is_right = hmac.compare_digest(given.strip().encode(), token.encode())
    if scheme.lower() != "bearer" or not is_right:
        raise Unauthenticated(
            "/metrics wants the token of LORAPLEX_SCRAPE_TOKEN: Authorization: Bearer TOKEN"
        )
