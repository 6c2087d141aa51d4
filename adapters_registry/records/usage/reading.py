"""Sums of usage over any span of time. The largest stretches that fit are read from their sums."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any, NamedTuple, TypedDict, Unpack

from sqlalchemy import ColumnElement, FromClause, case, distinct, func, literal, select, union_all
from sqlalchemy.orm import Session

from adapters_registry.records.tables import in_utc
from adapters_registry.records.usage.consumption import (
    COLUMNS,
    CONSUMER,
    DAYS,
    HOURS,
    MONTHS,
    TOTALS,
    Consumption,
    Sums,
)
from adapters_registry.records.usage.tables import DailyUsage

_LATEST = datetime(9000, 1, 1, tzinfo=UTC)
"""No usage is later, and there are months after it."""


class UsageFilters(TypedDict, total=False):
    """Which usage to read. A filter that is missing or None leaves nothing out."""

    tenant: str | None
    tenant_id: str | None
    """Tells several tenants apart that had one name, one after the other."""
    adapter: str | None
    """`tenant/name`, or the base's name."""
    since: datetime | None
    """The first moment: hours, days and months that begin before it are left out."""
    until: datetime | None
    """The moment before which they begin."""


class Used(NamedTuple):
    """What one tenant has used of one adapter."""

    tenant: str
    tenant_id: str
    adapter: str
    consumption: Consumption


class UsedByTenant(NamedTuple):
    """What one tenant has used in all, and of how many adapters."""

    tenant: str
    tenant_id: str
    num_adapters: int
    consumption: Consumption


class SpanPart(NamedTuple):
    """A part of a span, from `since` to before `until`, and the table that has its sums."""

    sums: Sums
    since: datetime | None
    until: datetime | None


def parts_of(
    since: datetime | None,
    until: datetime | None,
    kinds: Sequence[Sums] = (MONTHS, DAYS, HOURS),
) -> list[SpanPart]:
    """Divide a span into parts that each have a table of sums: whole months, days, and hours.

    `since` and `until` are in UTC; None means without a bound.
    """
    sums, *finer = kinds
    if not finer:
        return [SpanPart(sums, since, until)]
    first = sums.first_from(since) if since else None
    last = sums.begin_of(until) if until else None
    if first and last and first >= last:
        return parts_of(since, until, finer)
    parts = [] if first == since else parts_of(since, first, finer)
    parts.append(SpanPart(sums, first, last))
    return parts if last == until else parts + parts_of(last, until, finer)


def read_usage(
    session: Session,
    *,
    largest: int | None = None,
    skip: int = 0,
    **filters: Unpack[UsageFilters],
) -> list[Used]:
    """Return the sums by tenant and adapter, by name.

    With `largest`, at most so many, those with the most tokens first, after the first `skip`.
    """
    source = _source(filters)
    whose = [source.c[name] for name in ("tenant", "tenant_id", "adapter")]
    query = select(*whose, *_sums(source)).group_by(*whose)
    if largest is None:
        query = query.order_by(*whose)
    else:
        query = query.order_by(_tokens(source).desc(), *whose).limit(largest).offset(skip)
    return [
        Used(name, owner_id, of_adapter, Consumption.of(*values))
        for name, owner_id, of_adapter, *values in session.execute(query)
    ]


def read_usage_by_tenant(
    session: Session, base_name: str, **filters: Unpack[UsageFilters]
) -> list[UsedByTenant]:
    """Return the sums by tenant, those with the most tokens first.

    The base, whose name is `base_name`, does not count as an adapter.
    """
    source = _source(filters)
    whose = [source.c.tenant, source.c.tenant_id]
    adapters = func.count(distinct(case((source.c.adapter != base_name, source.c.adapter))))
    query = select(*whose, adapters, *_sums(source)).group_by(*whose)
    query = query.order_by(_tokens(source).desc(), *whose)
    return [
        UsedByTenant(name, owner_id, num_adapters, Consumption.of(*values))
        for name, owner_id, num_adapters, *values in session.execute(query)
    ]


def read_daily_usage(session: Session, **filters: Unpack[UsageFilters]) -> dict[date, Consumption]:
    """Return the sums by day (UTC) in the order of the days, without days that have no usage."""
    whose = _whose(filters)
    table: Any = (DAYS if whose else TOTALS).table
    sums = [func.sum(getattr(table, name)) for name in COLUMNS]
    query = select(table.day, *sums).group_by(table.day).order_by(table.day)
    span = _within(table.day, filters.get("since"), filters.get("until"))
    query = query.where(*_equal(table, whose), *span)
    return {day.date(): Consumption.of(*values) for day, *values in session.execute(query)}


def last_used_days(session: Session, adapters: Sequence[str]) -> dict[str, date]:
    """Return the last day (UTC) with usage of each adapter, `tenant/name`, that was ever used."""
    queries = [
        select(literal(adapter), func.max(DailyUsage.day)).where(DailyUsage.adapter == adapter)
        for adapter in adapters
    ]
    if not queries:
        return {}
    rows = session.execute(union_all(*queries))
    return {adapter: day.date() for adapter, day in rows if day is not None}


def _source(filters: UsageFilters) -> FromClause:
    """Return the rows whose sums are those of a span: who has used what, and how much."""
    whose = _whose(filters)
    since, until = _utc_or_none(filters.get("since")), _utc_or_none(filters.get("until"))
    queries = []
    for sums, first, last in parts_of(since, until):
        table = sums.table
        columns = [getattr(table, name) for name in (*CONSUMER, *COLUMNS)]
        of_span = _within(getattr(table, sums.moment), first, last)
        queries.append(select(*columns).where(*_equal(table, whose), *of_span))
    return (queries[0] if len(queries) == 1 else union_all(*queries)).subquery()


def _sums(source: FromClause) -> list[ColumnElement[Any]]:
    return [func.sum(source.c[name]) for name in COLUMNS]


def _tokens(source: FromClause) -> ColumnElement[Any]:
    return func.sum(source.c.input_tokens + source.c.output_tokens)


def _utc_or_none(moment: datetime | None) -> datetime | None:
    return None if moment is None else min(in_utc(moment), _LATEST)


def _whose(filters: UsageFilters) -> dict[str, str]:
    """Return the filters that name somebody or something."""
    given = {name: filters.get(name) for name in ("tenant", "tenant_id", "adapter")}
    return {name: str(value) for name, value in given.items() if value is not None}


def _equal(table: Any, whose: dict[str, str]) -> list[ColumnElement[bool]]:
    return [getattr(table, name) == value for name, value in whose.items()]


def _within(
    moment: Any, since: datetime | None, until: datetime | None
) -> list[ColumnElement[bool]]:
    after = [] if since is None else [moment >= since]
    return after if until is None else [*after, moment < until]
