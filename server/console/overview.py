"""What the server does now: traffic of the last minutes, queues, slots and tiers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from sqlalchemy.exc import SQLAlchemyError

from adapters_registry.records.servers import ServerFigures, ServerRecord, read_servers
from adapters_registry.registry import Registry
from server.api.routes import Routes
from server.auth import Caller
from server.console.parts import Parts, caller_of
from server.console.traffic import Traffic
from server.request_log.record import RequestRecord
from server.residency.figures import figures_now
from server.residency.states import Wait

STEP_SECONDS = 10
NUM_STEPS = 60
RECENT_SECONDS = 300
"""The figures are of the last five minutes, the charts of the last ten."""


@dataclass(frozen=True)
class Overview:
    """The figures of the page. What is not of one tenant is only for admins."""

    traffic: Traffic
    series: dict[str, list[float]]
    """For the charts: Unix times, requests and tokens a second, failed requests a second."""
    waiting: dict[Wait, int]
    figures: ServerFigures
    """Of the server that answers."""
    servers: list[ServerRecord] | None
    """All servers of the database; None if it does not answer."""

    @property
    def tokens_per_second(self) -> float:
        """Tokens of answers a second, over the last five minutes."""
        return self.traffic.output_tokens / RECENT_SECONDS


def router(parts: Parts) -> Routes:
    """Return the routes of the page, and of the part of it that is asked for again and again."""
    routes = Routes(prefix="/overview")
    services, render = parts.services, parts.renderer.page

    @routes.get("")
    async def show(request: Request) -> Response:
        """Show the whole page."""
        return render(request, "overview.html", **await figures(request))

    @routes.get("/live")
    async def show_live(request: Request) -> Response:
        """Show the figures alone."""
        return render(request, "overview_live.html", **await figures(request))

    async def figures(request: Request) -> dict[str, Any]:
        registry, slots = services.registry, services.settings.max_loras
        waiting = services.waiting.now()
        num_waiting = sum(waiting.values())
        add_up = figures_now(registry, services.leases, services.engine, slots, num_waiting)
        view = await parts.workers.run(
            _overview, services.recent.snapshot(), caller_of(request), add_up, registry, waiting
        )
        return {
            "view": view,
            "own_id": registry.server_id,
            "has_origin": registry.content.origin is not None,
            "disk_budget": services.settings.disk_budget_bytes,
            "num_adapters": len(registry.catalog.adapters),
        }

    return routes


def _overview(
    records: Sequence[RequestRecord],
    caller: Caller,
    add_up: Callable[[], ServerFigures],
    registry: Registry,
    waiting: dict[Wait, int],
) -> Overview:
    traffic, span = Traffic(), NUM_STEPS * STEP_SECONDS
    sums = [[0.0, 0.0, 0.0] for _ in range(NUM_STEPS)]
    for record in records:
        ended = record.age_seconds - record.seconds
        if ended >= span or not record.path.startswith("/v1/"):
            continue
        if not caller.is_admin and record.tenant_id != caller.tenant_id:
            continue
        if ended < RECENT_SECONDS:
            traffic.add(record)
        step = sums[NUM_STEPS - 1 - int(max(ended, 0.0) // STEP_SECONDS)]
        step[0] += 1
        step[1] += record.output_tokens
        step[2] += record.status >= 500
    end = int(time.time())
    series = {
        "times": [float(end - (NUM_STEPS - 1 - i) * STEP_SECONDS) for i in range(NUM_STEPS)],
        "requests": [step[0] / STEP_SECONDS for step in sums],
        "tokens": [step[1] / STEP_SECONDS for step in sums],
        "errors": [step[2] / STEP_SECONDS for step in sums],
    }
    servers = _servers(registry) if caller.is_admin else []
    return Overview(traffic, series, waiting, add_up(), servers)


def _servers(registry: Registry) -> list[ServerRecord] | None:
    try:
        with registry.session() as session:
            return read_servers(session)
    except SQLAlchemyError:
        return None
