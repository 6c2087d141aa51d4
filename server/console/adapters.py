"""The list of adapters, a page at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Annotated

from fastapi import Query, Request
from fastapi.responses import Response
from pydantic import BeforeValidator

from adapters_registry.records.catalog import AdapterRecord, VersionRecord
from adapters_registry.records.tables import VersionState
from adapters_registry.records.usage.reading import last_used_days
from adapters_registry.registry import Registry
from server.api.admin.paging import Sorting, find_adapters, page_of
from server.api.routes import Routes
from server.auth import Caller
from server.console.parts import Parts, caller_of
from server.console.traffic import Traffic, traffic_by
from server.request_log.record import RequestRecord

PAGE_SIZE = 50


@dataclass(frozen=True)
class AdapterRow:
    """An adapter as a row of the list."""

    adapter: AdapterRecord
    newest: VersionRecord | None
    tier: str
    """Where the live version's weights are on this server."""
    traffic: Traffic
    last_day: date | None
    """The last day with recorded usage."""


def router(parts: Parts) -> Routes:
    """Return the route of the list."""
    routes = Routes()
    services = parts.services
    registry = services.registry

    @routes.get("/adapters")
    async def list_adapters(
        request: Request,
        search: Annotated[str, Query(max_length=256)] = "",
        state: Annotated[VersionState | None, BeforeValidator(_or_none)] = None,
        sort: Sorting = Sorting.NAME,
        after: Annotated[str, Query(max_length=1024)] = "",
    ) -> Response:
        """Show the adapters that the caller manages."""
        adapters, newest, last_days, following, total = await parts.workers.run(
            _read, caller_of(request), search.strip(), state, sort, after
        )
        traffic = await parts.workers.run(_traffic, services.recent.snapshot(), adapters)
        rows = [_row(adapter, newest, last_days, traffic) for adapter in adapters]
        return parts.renderer.page(
            request,
            "adapters.html",
            rows=rows,
            total=total,
            next=following,
            search=search,
            state=state,
            sort=sort,
            is_first=not after,
            states=list(VersionState),
        )

    def _read(
        caller: Caller, search: str, state: VersionState | None, sort: Sorting, after: str
    ) -> tuple[list[AdapterRecord], dict[str, VersionRecord], dict[str, date], str | None, int]:
        found = find_adapters(registry, caller, search=search or None, state=state)
        page, following = page_of(found, sort, PAGE_SIZE, after)
        last_days = read_last_days(registry, page)
        return page, registry.newest_versions(page), last_days, following, len(found)

    def _row(
        adapter: AdapterRecord,
        newest: Mapping[str, VersionRecord],
        last_days: Mapping[str, date],
        traffic: Mapping[str, Traffic],
    ) -> AdapterRow:
        tier = services.leases.tier_of(adapter.live).value if adapter.live else ""
        return AdapterRow(
            adapter,
            newest.get(adapter.id),
            tier,
            traffic.get(adapter.id, Traffic()),
            last_days.get(adapter.id),
        )

    return routes


def read_last_days(registry: Registry, adapters: Sequence[AdapterRecord]) -> dict[str, date]:
    """Return the last day (UTC) with recorded usage of each adapter that has any.

    The days of an earlier adapter of the name, perhaps of another owner, do not count.
    """
    with registry.session() as session:
        found = last_used_days(session, [adapter.id for adapter in adapters])
    since = {adapter.id: adapter.created_at.date() for adapter in adapters}
    return {adapter: day for adapter, day in found.items() if day >= since[adapter]}


def _or_none(value: object) -> object:
    """Take the empty value of a form for none."""
    return value or None


def _traffic(records: list[RequestRecord], adapters: list[AdapterRecord]) -> Mapping[str, Traffic]:
    shown = {adapter.id for adapter in adapters}
    return traffic_by(records, lambda record: record.model if record.model in shown else None)
