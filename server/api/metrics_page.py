"""The text of `/metrics`, which is made at most once a second, however many clients ask."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable
from functools import partial

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics import exposition as openmetrics

from adapters_registry.registry import Registry
from server.api.registry_metrics import registry_metrics
from server.api.waiting import Waiting, waiting_metrics
from server.errors import Unauthenticated
from server.residency.leases import Leases
from server.residency.metrics import residency_metrics
from server.workers import Workers

Encoder = Callable[[CollectorRegistry], bytes]

MAX_AGE_SECONDS = 1.0
"""Prometheus asks every few seconds. Clients that ask more often get the same page again."""


class MetricsPage:
    """Prometheus metrics, ours and vLLM's, as text."""

    def __init__(
        self,
        registry: Registry,
        leases: Leases,
        waiting: Waiting,
        max_loras: int,
        base_name: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives seconds and never goes back."""
        self._content, self._leases, self._max_loras = registry.content, leases, max_loras
        self._waiting, self._base_name = waiting, base_name
        self._of_the_registry = registry_metrics(registry)
        self._clock = clock
        self._making = asyncio.Lock()
        self._workers = Workers("metrics", 1)
        self._pages: dict[str, tuple[bytes, float]] = {}
        """The last page of each content type, and when it was made."""

    async def page(self, accept: str) -> tuple[bytes, str]:
        """Return the page in a form that a scraper's `Accept` header wants, and its content type.

        Calls at the same time wait for one page and share it.
        """
        encode, content_type = _encoder_for(accept)
        async with self._making:
            page, made_at = self._pages.get(content_type, (b"", -MAX_AGE_SECONDS))
            if self._clock() - made_at >= MAX_AGE_SECONDS:
                page = await self._make(encode)
                self._pages[content_type] = page, self._clock()
        return page, content_type

    async def _make(self, encode: Encoder) -> bytes:
        disk_bytes = self._content.num_bytes()
        of_residency = residency_metrics(
            self._leases.snapshot(), self._max_loras, disk_bytes, self._base_name
        )
        of_waiting = waiting_metrics(self._waiting.now())
        parts = (REGISTRY, self._of_the_registry, of_residency, of_waiting)
        return await self._workers.run(lambda: _joined([encode(part) for part in parts]))


def _encoder_for(accept: str) -> tuple[Encoder, str]:
    """Return what writes a page in the form that a scraper accepts, and the page's content type.

    In OpenMetrics prometheus_client would write `vllm_` for `vllm:`, as if a metric's name might
    have no colon. Without escaping it writes the names as they are, and all of ours are allowed.
    """
    encode, content_type = choose_encoder(accept)
    if content_type.startswith("application/openmetrics-text"):
        encode = partial(openmetrics.generate_latest, escaping=openmetrics.ALLOWUTF8)
        content_type = openmetrics.CONTENT_TYPE_LATEST
    return encode, content_type


def _joined(pages: list[bytes]) -> bytes:
    """Return the pages as one. OpenMetrics ends each with a line that may stand at the end only."""
    end = b"# EOF\n"
    bodies = [page.removesuffix(end) for page in pages]
    return b"".join(bodies) + (end if pages[-1].endswith(end) else b"")


def add_metrics(app: FastAPI, page: MetricsPage, scrape_token: str | None) -> None:
    """Add `/metrics`. With a token, scrapers send it as `Authorization: Bearer TOKEN`."""

    open_metrics = {"content": {"application/openmetrics-text": {"schema": {"type": "string"}}}}

    @app.get(
        "/metrics",
        tags=["operations"],
        response_class=PlainTextResponse,
        responses={200: open_metrics},
    )
    async def scrape(request: Request) -> Response:
        """Prometheus metrics, ours and vLLM's; as OpenMetrics, with exemplars, if asked for."""
        if scrape_token is not None:
            _require(scrape_token, request.headers.get("authorization", ""))
        text, content_type = await page.page(request.headers.get("accept", ""))
        return Response(text, media_type=content_type, headers={"vary": "accept"})


def _require(token: str, authorization: str) -> None:
    scheme, _, given = authorization.partition(" ")
    is_right = hmac.compare_digest(given.strip().encode(), token.encode())
    if scheme.lower() != "bearer" or not is_right:
        raise Unauthenticated(
            "/metrics wants the token of LORAPLEX_SCRAPE_TOKEN: Authorization: Bearer TOKEN"
        )
