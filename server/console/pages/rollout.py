"""Rollouts that servers carry out: judged canaries and warm promotions, from an adapter's page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fastapi import Depends, Request
from fastapi.responses import Response
from starlette.datastructures import FormData, UploadFile

from adapters_registry.names import LIVE
from adapters_registry.records.aliases import require_revision
from adapters_registry.records.change import Change
from adapters_registry.rollout.canaries import CanaryRecord
from adapters_registry.rollout.plan import Criterion
from server.api.admin import hide_foreign
from server.api.admin.rollout.canaries import CanaryRequest, starting
from server.api.routes import Routes
from server.console.adapter import AdapterPages
from server.console.pages.forms import body_of
from server.console.parts import Parts
from server.errors import InvalidRequest
from server.rollout.warm_promotions import Promoted

SECONDS_A_MINUTE = 60
DATA = "data"


def router(parts: Parts) -> Routes:
    """Return the route that begins a judged canary."""
    routes = Routes(prefix="/adapters/{tenant}/{name}", dependencies=[Depends(hide_foreign)])
    services, pages = parts.services, AdapterPages(parts)

    @routes.post("/canary")
    async def begin(request: Request, tenant: str, name: str) -> Response:
        """Begin a canary that is judged."""
        form = await request.form()
        body, seen = await _canary_of(form), _text(form, "revision")
        start = starting(services.rollouts, tenant, name, body, services.settings.warm_seconds)

        def start_if_unchanged(change: Change) -> CanaryRecord:
            require_revision(change, tenant, name, LIVE, int(seen) if seen.isdecimal() else None)
            return start(change)

        canary = await parts.workers.run(services.registry.apply, start_if_unchanged)
        services.leases.follow(services.registry.catalog)
        criteria = ", ".join(canary.plan.judge)
        done = (
            f"@{canary.number} gets {canary.weight} % of the requests from now on, and is judged "
            f"by {criteria} beside @{canary.live_number}."
        )
        return await pages.show(request, tenant, name, done)

    return routes


def promoted_in_words(alias: str, promoted: Promoted) -> str:
    """Return what a warm promotion has done, and on which servers the version is not in memory."""
    versions = ", ".join(f"@{target.version}" for target in promoted.alias.targets)
    late = [server for server, said in promoted.servers.items() if not said.is_settled]
    waited = f"after {promoted.waited_seconds:.1f} s"
    if not late:
        return f"The alias {alias} means {versions}, {waited}: every server that serves it is warm."
    return (
        f"The alias {alias} means {versions}, {waited}. {len(late)} of {len(promoted.servers)} "
        "servers had not loaded it by then: their first requests wait for that."
    )


async def _canary_of(form: FormData) -> CanaryRequest:
    data = await _conversations(form.get(DATA))
    judge = [name for name in form.getlist("judge") if isinstance(name, str)]
    if data:
        judge.append(Criterion.EVALUATION)
    fields = {
        "version": form.get("version"),
        "steps": _text(form, "steps").replace(",", " ").split(),
        "every_seconds": _seconds(_text(form, "every_minutes")),
        "judge": judge,
        "min_requests": form.get("min_requests"),
        "metric": form.get("metric") or CanaryRequest.model_fields["metric"].default,
        "data": data,
        "warm": form.get("warm") == "on",
    }
    return body_of(CanaryRequest, fields)


def _text(form: FormData, field: str) -> str:
    value = form.get(field, "")
    return value if isinstance(value, str) else ""


def _seconds(minutes: str) -> float:
    try:
        return float(minutes) * SECONDS_A_MINUTE
    except ValueError:
        raise InvalidRequest("every_minutes must be a number", param="every_minutes") from None


async def _conversations(file: UploadFile | str | None) -> Sequence[dict[str, Any]]:
    """Read held-out conversations: JSON lines, or one JSON array. No file means none."""
    if not isinstance(file, UploadFile) or not file.size:
        return []
    try:
        text = (await file.read()).decode("utf-8-sig").strip()
        if text.startswith("["):
            return list(json.loads(text))
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"the held-out conversations can't be read: {error}; give a file of JSON lines, each "
            'with its "messages"',
            param=DATA,
        ) from None
