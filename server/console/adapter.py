"""One adapter's page: its versions, its aliases, how both sides of a split do, and its history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, NamedTuple

from fastapi import Depends, Request
from fastapi.responses import Response

from adapters_registry.names import LIVE
from adapters_registry.records.catalog import AdapterRecord, AliasRecord, VersionRecord
from adapters_registry.records.tables import AuditEntry
from adapters_registry.rollout.canaries import CanaryRecord
from adapters_registry.rollout.plan import METRICS, CanaryPlan
from server.api.admin import hide_foreign
from server.api.admin.rollout.canaries import read_latest
from server.api.routes import Routes
from server.api.words import change_in_words
from server.auth import Caller
from server.console.adapters import read_last_days
from server.console.evaluations import Fact, compare, gate_report
from server.console.parts import Parts, caller_of
from server.console.traffic import Traffic, traffic_by
from server.request_log.record import RequestRecord

MAX_VERSIONS = 50
MAX_ENTRIES = 50
MAX_COMPARED = 4


@dataclass(frozen=True)
class VersionRow:
    """A version, and how it does on this server."""

    version: VersionRecord
    tier: str
    running: int
    """The requests that hold it now."""
    aliases: list[str]
    traffic: Traffic
    report: list[tuple[str, str]]


@dataclass(frozen=True)
class Arm:
    """One side of a split: a version and its share of the requests."""

    row: VersionRow
    weight: int


@dataclass(frozen=True)
class AdapterView:
    """Everything that the page shows."""

    adapter: AdapterRecord
    rows: list[VersionRow]
    """The newest version first."""
    arms: list[Arm]
    """Those of `live`."""
    compared: list[VersionRecord]
    facts: list[Fact]
    entries: list[tuple[AuditEntry, str]]
    """Changes, the newest first, each in words."""
    judged: CanaryRecord | None
    """The last judged canary."""
    last_day: date | None
    """The last day with recorded usage."""

    @property
    def live(self) -> AliasRecord | None:
        """Where the bare name points."""
        return self.adapter.aliases.get(LIVE)

    @property
    def last_at(self) -> datetime | None:
        """When the last request of the last hour came to this server."""
        return max((row.traffic.last_at for row in self.rows if row.traffic.last_at), default=None)

    @property
    def running(self) -> int:
        """The requests that run on any of its versions now."""
        return sum(row.running for row in self.rows)


class Recorded(NamedTuple):
    """What the database says of an adapter."""

    versions: Sequence[VersionRecord]
    entries: Sequence[AuditEntry]
    judged: CanaryRecord | None
    last_day: date | None


class AdapterPages:
    """Shows adapters. Those who change one show it again afterwards."""

    def __init__(self, parts: Parts) -> None:
        self._parts, self._services = parts, parts.services

    async def show(self, request: Request, tenant: str, name: str, done: str = "") -> Response:
        """Return the page of an adapter. `done` says what was just changed.

        Raises:
            NotFound: there is no such adapter.
        """
        caller, services = caller_of(request), self._services
        adapter = services.registry.get_adapter(tenant, name)
        running: Counter[str] = Counter()
        for row in services.leases.snapshot():
            running[row["model"]] += row["leases"]
        recorded, traffic = await self._parts.workers.run(
            self._read, caller, adapter, services.recent.snapshot()
        )
        view = self._view(adapter, recorded, running, traffic)
        return self._parts.renderer.page(
            request,
            "adapter.html",
            view=view,
            adapter=adapter,
            done=done,
            warm_seconds=services.settings.warm_seconds,
            plan=CanaryPlan(),
            metrics=METRICS,
        )

    def _read(
        self, caller: Caller, adapter: AdapterRecord, records: list[RequestRecord]
    ) -> tuple[Recorded, Mapping[int, Traffic]]:
        registry = self._services.registry
        versions = registry.read_history(adapter.tenant, adapter.name, limit=MAX_VERSIONS)
        entries = registry.audit(
            tenant=adapter.tenant,
            tenant_id=None if caller.is_admin else caller.tenant_id,
            adapter=adapter.id,
            limit=MAX_ENTRIES,
        )
        traffic = traffic_by(records, lambda r: r.version if r.model == adapter.id else None)
        judged = read_latest(registry, adapter.tenant, adapter.name)
        last_day = read_last_days(registry, [adapter]).get(adapter.id)
        return Recorded(versions, entries, judged, last_day), traffic

    def _view(
        self,
        adapter: AdapterRecord,
        recorded: Recorded,
        running: Mapping[str, int],
        traffic: Mapping[int, Traffic],
    ) -> AdapterView:
        rows = [
            VersionRow(
                version,
                self._services.leases.tier_of(version).value if version.state == "ready" else "",
                running.get(version.public_name, 0),
                _aliases_of(adapter, version.number),
                traffic.get(version.number, Traffic()),
                gate_report(version),
            )
            for version in recorded.versions
        ]
        by_number = {row.version.number: row for row in rows}
        live = adapter.aliases.get(LIVE)
        arms = [
            Arm(by_number[target.version], target.weight)
            for target in (live.targets if live else ())
            if target.version in by_number
        ]
        with_facts = [version for version in recorded.versions if _has_facts(version)]
        compared = with_facts[:MAX_COMPARED][::-1]
        words = [(entry, change_in_words(entry.before, entry.after)) for entry in recorded.entries]
        return AdapterView(
            adapter,
            rows,
            arms,
            compared,
            compare(compared),
            words,
            recorded.judged,
            recorded.last_day,
        )


def router(parts: Parts) -> Routes:
    """Return the route that shows an adapter."""
    routes = Routes(dependencies=[Depends(hide_foreign)])
    pages = AdapterPages(parts)

    @routes.get("/adapters/{tenant}/{name}")
    async def show(request: Request, tenant: str, name: str) -> Response:
        """Show an adapter."""
        return await pages.show(request, tenant, name)

    return routes


def _aliases_of(adapter: AdapterRecord, number: int) -> list[str]:
    return sorted(
        name
        for name, alias in adapter.aliases.items()
        if any(target.version == number for target in alias.targets)
    )


def _has_facts(version: VersionRecord) -> bool:
    sent: dict[str, Any] = version.metadata
    return any(name != "checked" for name in sent)
