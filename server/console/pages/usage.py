"""What was used: by day as a chart, by tenant and adapter as a table and as CSV, and in money."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends, Query, Request
from fastapi.responses import Response
from pydantic import BeforeValidator
from sqlalchemy.orm import Session

from adapters_registry.records.servers import read_servers
from adapters_registry.records.tables import now
from adapters_registry.records.usage.consumption import Consumption
from adapters_registry.records.usage.reading import (
    Used,
    read_daily_usage,
    read_usage,
    read_usage_by_tenant,
)
from adapters_registry.records.usage.recording import oldest_usage
from server.api.admin.usage import body_of, csv_of, owner_for
from server.api.routes import Routes
from server.auth import Caller
from server.console.pages.money import Bill, Cost, bills, hours_between
from server.console.parts import Parts, caller_of
from server.console.rendering import HEADERS
from server.errors import InvalidRequest

PAGE_SIZE = 50
MAX_PAGE = 1_000_000
EARLIEST, LATEST = date(2000, 1, 1), date(9000, 1, 1)

Day = Annotated[date | None, BeforeValidator(lambda value: value or None)]
Name = Annotated[str, Query(max_length=256)]


@dataclass(frozen=True)
class UsageView:
    """What the page shows."""

    rows: list[Used]
    """By tenant and adapter: a page of them, and one more if there are more."""
    days: dict[date, Consumption]
    cost: Cost | None
    """None where no price is set, and for those who are not admins."""
    bills: list[Bill]


@dataclass(frozen=True)
class Span:
    """Whose usage is asked for, of what, and from which day to which, both included."""

    tenant: str
    adapter: str
    since: date
    until: date

    def filters(self, caller: Caller) -> dict[str, Any]:
        """Return the filters of `read_usage`, without an end where that lies in the future.

        So the present month is read from its sums, as a whole.

        Raises:
            NotFound: the tenant is one that the caller does not manage.
        """
        return owner_for(caller, self.tenant or None) | {
            "adapter": self.adapter or None,
            "since": datetime.combine(self.since, time(), UTC),
            "until": None if self.until >= now().date() else self._end,
        }

    @property
    def _end(self) -> datetime:
        return datetime.combine(self.until + timedelta(days=1), time(), UTC)

    def hours(self, first_use: datetime | None) -> float:
        """Return the hours of the span that are over, since the first use of all."""
        since = datetime.combine(self.since, time(), UTC)
        return hours_between(since, min(self._end, now()), first_use)

    def month_before(self) -> dict[str, date] | None:
        """Return the days of the month before the first day; None if that would be too early."""
        last = self.since.replace(day=1) - timedelta(days=1)
        return _month_of(last) if last > EARLIEST else None

    def month_after(self) -> dict[str, date] | None:
        """Return the days of the month after the last day; None if that has not begun."""
        first = (self.until.replace(day=1) + timedelta(days=32)).replace(day=1)
        return _month_of(first) if first <= now().date() else None

    def query(self, **more: object) -> str:
        """Return the query of a link that keeps all of it but for what is given."""
        return urlencode(vars(self) | more)


def span(tenant: Name = "", adapter: Name = "", since: Day = None, until: Day = None) -> Span:
    """Return what the query of a page asks for; the present month if it names no days."""
    last = until or max(now().date(), since or EARLIEST)
    first = since or max(last.replace(day=1), EARLIEST)
    if not EARLIEST <= first <= last <= LATEST:
        raise InvalidRequest("the days must be in order, and the first one after the year 2000")
    return Span(tenant.strip(), adapter.strip(), first, last)


def router(parts: Parts) -> Routes:
    """Return the routes of the page and of its CSV."""
    routes = Routes()
    services = parts.services

    @routes.get("/usage")
    async def show(
        request: Request,
        asked: Annotated[Span, Depends(span)],
        page: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 1,
    ) -> Response:
        """Show what the caller, or as an admin anyone, has used."""
        view = await parts.workers.run(_read, caller_of(request), asked, (page - 1) * PAGE_SIZE)
        return parts.renderer.page(
            request,
            "usage.html",
            asked=asked,
            rows=view.rows[:PAGE_SIZE],
            total=sum(view.days.values(), Consumption()),
            days=every_day(view.days),
            page=page,
            has_next=len(view.rows) > PAGE_SIZE,
            cost=view.cost,
            bills=view.bills,
            currency=services.settings.currency,
        )

    @routes.get("/usage/csv")
    async def download(request: Request, asked: Annotated[Span, Depends(span)]) -> Response:
        """Return the table as CSV, whole."""
        rows = await parts.workers.run(_read_all, asked.filters(caller_of(request)))
        answer = csv_of([body_of(used) for used in rows])
        name = f"usage-{asked.since}-{asked.until}.csv"
        answer.headers.update(HEADERS | {"content-disposition": f'attachment; filename="{name}"'})
        return answer

    def _read(caller: Caller, asked: Span, skip: int) -> UsageView:
        filters = asked.filters(caller)
        services.usage_buffer.save()
        with services.registry.session() as session:
            rows = read_usage(session, **filters, largest=PAGE_SIZE + 1, skip=skip)
            days = read_daily_usage(session, **filters)
            price = services.settings.machine_price
            if price is None or not caller.is_admin:
                return UsageView(rows, days, None, [])
            return UsageView(rows, days, *_in_money(session, asked, filters, price))

    def _in_money(
        session: Session, asked: Span, filters: dict[str, Any], price: float
    ) -> tuple[Cost, list[Bill]]:
        used = read_usage_by_tenant(session, services.settings.served_base_name, **filters)
        span_alone = {name: filters[name] for name in ("since", "until")}
        everyone = sum(read_daily_usage(session, **span_alone).values(), Consumption())
        running = sum(not server.is_away for server in read_servers(session))
        cost = Cost(price, max(running, 1), asked.hours(oldest_usage(session)))
        return cost, bills(used, everyone, cost)

    def _read_all(filters: dict[str, Any]) -> list[Used]:
        services.usage_buffer.save()
        with services.registry.session() as session:
            return read_usage(session, **filters)

    return routes


def _month_of(day: date) -> dict[str, date]:
    """Return the first and the last day of a day's month."""
    following = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
    return {"since": day.replace(day=1), "until": following - timedelta(days=1)}


def every_day(days: dict[date, Consumption]) -> dict[date, Consumption]:
    """Return the days from the first to the last one with usage, without gaps."""
    if not days:
        return {}
    first, num_days = min(days), (max(days) - min(days)).days + 1
    dates = (first + timedelta(days=number) for number in range(num_days))
    return {day: days.get(day, Consumption()) for day in dates}
