"""What the server does now: traffic of the last minutes, queues, slots and tiers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import Request
from fastapi.responses import Response
from numpy.typing import NDArray
from sqlalchemy.exc import SQLAlchemyError

from adapters_registry.records.servers import ServerFigures, ServerRecord, read_servers
from adapters_registry.registry import Registry
from server.api.routes import Routes
from server.auth import Caller
from server.console.parts import Parts, caller_of
from server.console.traffic import RecentColumns, Traffic
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
    columns = RecentColumns(NUM_STEPS * STEP_SECONDS)

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
        caller, recent = caller_of(request), services.recent
        records, num_added = recent.snapshot(), recent.num_added

        def look() -> Overview:
            now, tenant_id = time.monotonic(), None if caller.is_admin else caller.tenant_id
            rows = columns.update(records, num_added, now, tenant_id)
            return _overview(rows, now, caller, add_up, registry, waiting)

        view = await parts.workers.run(look)
        return {
            "view": view,
            "own_id": registry.server_id,
            "has_origin": registry.content.origin is not None,
            "disk_budget": services.settings.disk_budget_bytes,
            "num_adapters": len(registry.catalog.adapters),
        }

    return routes


def _overview(
    rows: NDArray[np.float64],
    now: float,
    caller: Caller,
    add_up: Callable[[], ServerFigures],
    registry: Registry,
    waiting: dict[Wait, int],
) -> Overview:
    ago = np.maximum(now - rows[:, RecentColumns.ENDED_AT], 0.0)
    recent = rows[ago < RECENT_SECONDS]
    first_token = recent[:, RecentColumns.FIRST_TOKEN]
    traffic = Traffic(
        requests=len(recent),
        errors=int(recent[:, RecentColumns.ERROR].sum()),
        output_tokens=int(recent[:, RecentColumns.TOKENS].sum()),
        first_token_seconds=np.sort(first_token[~np.isnan(first_token)]).tolist(),
    )
    steps = NUM_STEPS - 1 - (ago // STEP_SECONDS).astype(int)

    def per_second(weights: NDArray[np.float64] | None = None) -> list[float]:
        sums = np.bincount(steps, weights, NUM_STEPS) / STEP_SECONDS
        return [float(value) for value in sums]

    end = int(time.time())
    series = {
        "times": [float(end - (NUM_STEPS - 1 - i) * STEP_SECONDS) for i in range(NUM_STEPS)],
        "requests": per_second(),
        "tokens": per_second(rows[:, RecentColumns.TOKENS]),
        "errors": per_second(rows[:, RecentColumns.FAILED]),
    }
    servers = _servers(registry) if caller.is_admin else []
    return Overview(traffic, series, waiting, add_up(), servers)


def _servers(registry: Registry) -> list[ServerRecord] | None:
    try:
        with registry.session() as session:
            return read_servers(session)
    except SQLAlchemyError:
        return None
