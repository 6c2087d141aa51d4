"""What each tenant has used of each adapter, added up by the hour, and old usage by the day."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, fields
from datetime import date, datetime, timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from adapters_registry.records.change import Change
from adapters_registry.records.tables import Usage

DAY = timedelta(days=1)
HOURS_KEPT_FOR = 90 * DAY
"""Usage that is older is added up by the day."""


@dataclass
class Consumption:
    """What requests have used."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    slot_seconds: float = 0.0
    """How long slots were held, summed over the requests that held the same slot together."""
    cold_starts: int = 0
    """Requests whose version was in no slot when they arrived."""

    def __add__(self, other: Consumption) -> Consumption:
        return Consumption(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


_KEY = ("hour", "tenant_id", "tenant", "adapter")
COLUMNS = tuple(field.name for field in fields(Consumption))


def hour_of(moment: datetime) -> datetime:
    """Return the hour of a moment."""
    return moment.replace(minute=0, second=0, microsecond=0)


UsageKey = tuple[datetime, str, str, str]
"""An hour, a tenant's id and name, an adapter."""


def add_usage(session: Session, used: Mapping[UsageKey, Consumption]) -> None:
    """Add usage to what is recorded. Several servers may do this at the same time.

    All of them lock the rows in the same order, so that there is no deadlock.
    """
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    new = dialect.insert(Usage)
    sums = {name: getattr(Usage, name) + getattr(new.excluded, name) for name in COLUMNS}
    upsert = new.on_conflict_do_update(index_elements=list(_KEY), set_=sums)
    rows = [{**dict(zip(_KEY, key, strict=True)), **asdict(used[key])} for key in sorted(used)]
    session.connection().execute(upsert, rows)


def oldest_usage(session: Session) -> datetime | None:
    """Return the first hour for which there is usage, or None."""
    return session.scalar(select(Usage.hour).order_by(Usage.hour).limit(1))


def has_hours(session: Session, day: datetime) -> bool:
    """Return whether a day, which begins at `day`, has hours that `roll_up` would add up."""
    later = select(Usage.hour).where(Usage.hour > day, Usage.hour < day + DAY).limit(1)
    return session.scalar(later) is not None


def roll_up(change: Change, day: datetime) -> None:
    """Add up the hours of a day into its first hour. Sums over whole days stay as they are."""
    session = change.session
    of_day = (Usage.hour >= day, Usage.hour < day + DAY)
    sums = [func.sum(getattr(Usage, name)) for name in COLUMNS]
    whose = Usage.tenant_id, Usage.tenant, Usage.adapter
    rows = session.execute(select(*whose, *sums).where(*of_day).group_by(*whose)).all()
    session.execute(delete(Usage).where(*of_day))
    for tenant_id, tenant, adapter, *values in rows:
        used = asdict(_consumption(*values))
        row = Usage(hour=day, tenant_id=tenant_id, tenant=tenant, adapter=adapter, **used)
        session.add(row)


class Used(NamedTuple):
    """What one tenant has used of one adapter."""

    tenant: str
    tenant_id: str
    adapter: str
    consumption: Consumption


def read_usage(
    session: Session,
    *,
    tenant: str | None = None,
    tenant_id: str | None = None,
    adapter: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    largest: int | None = None,
    skip: int = 0,
) -> list[Used]:
    """Sums by tenant and adapter, of the hours that begin within [since, until), by name.

    With `largest`, at most so many, those with the most tokens first, after the first `skip`.

    Several tenants that had one name, one after the other, are told apart by their ids.
    """
    whose = Usage.tenant, Usage.tenant_id, Usage.adapter
    sums = [func.sum(getattr(Usage, name)) for name in COLUMNS]
    query = select(*whose, *sums).group_by(*whose)
    if largest is not None:
        tokens = func.sum(Usage.input_tokens + Usage.output_tokens).desc()
        query = query.order_by(tokens, *whose).limit(largest).offset(skip)
    else:
        query = query.order_by(*whose)
    query = query.where(*_filters(tenant, tenant_id, adapter, since, until))
    return [
        Used(name, owner_id, of_adapter, _consumption(*values))
        for name, owner_id, of_adapter, *values in session.execute(query)
    ]


def read_daily_usage(
    session: Session,
    *,
    tenant: str | None = None,
    tenant_id: str | None = None,
    adapter: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> dict[date, Consumption]:
    """Sums by day (UTC) in the order of the days, with the filters of `read_usage`.

    Days without usage are left out.
    """
    sums = [func.sum(getattr(Usage, name)) for name in COLUMNS]
    query = select(Usage.hour, *sums).group_by(Usage.hour).order_by(Usage.hour)
    query = query.where(*_filters(tenant, tenant_id, adapter, since, until))
    days: dict[date, Consumption] = {}
    for hour, *values in session.execute(query):
        day = hour.date()
        days[day] = days.get(day, Consumption()) + _consumption(*values)
    return days


def _filters(
    tenant: str | None,
    tenant_id: str | None,
    adapter: str | None,
    since: datetime | None,
    until: datetime | None,
) -> list[ColumnElement[bool]]:
    filters = []
    if tenant is not None:
        filters.append(Usage.tenant == tenant)
    if tenant_id is not None:
        filters.append(Usage.tenant_id == tenant_id)
    if adapter is not None:
        filters.append(Usage.adapter == adapter)
    if since is not None:
        filters.append(Usage.hour >= since)
    if until is not None:
        filters.append(Usage.hour < until)
    return filters


def _consumption(*values: float) -> Consumption:
    # A sum of integers is a Decimal on PostgreSQL.
    requests, input_tokens, output_tokens, slot_seconds, cold_starts = values
    return Consumption(
        int(requests), int(input_tokens), int(output_tokens), float(slot_seconds), int(cold_starts)
    )
