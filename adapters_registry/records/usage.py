"""What tenants have used, of which adapter: summed up by the hour, for showback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, fields
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from adapters_registry.records.tables import Usage


@dataclass
class Consumption:
    """What requests have used."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    slot_seconds: float = 0.0
    """For how long a slot was held, summed over the requests that held it together."""
    cold_starts: int = 0
    """Requests that found their version in no slot."""

    def __add__(self, other: Consumption) -> Consumption:
        return Consumption(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


_KEY = ("hour", "tenant", "adapter")
COLUMNS = tuple(field.name for field in fields(Consumption))


def hour_of(moment: datetime) -> datetime:
    """The hour in which a moment is."""
    return moment.replace(minute=0, second=0, microsecond=0)


UsageKey = tuple[datetime, str, str]
"""An hour, a tenant, an adapter."""


def add_usage(session: Session, used: Mapping[UsageKey, Consumption]) -> None:
    """Add to what is recorded; several servers may, at a time.

    All take the rows in the same order, so that none waits for another that waits for it.
    """
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    new = dialect.insert(Usage)
    sums = {name: getattr(Usage, name) + getattr(new.excluded, name) for name in COLUMNS}
    upsert = new.on_conflict_do_update(index_elements=list(_KEY), set_=sums)
    rows = [{**dict(zip(_KEY, key, strict=True)), **asdict(used[key])} for key in sorted(used)]
    session.connection().execute(upsert, rows)


def read_usage(
    session: Session,
    *,
    tenant: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[tuple[str, str, Consumption]]:
    """Sums by tenant and adapter, of the hours that begin within [since, until)."""
    sums = [func.sum(getattr(Usage, name)) for name in COLUMNS]
    query = select(Usage.tenant, Usage.adapter, *sums).group_by(Usage.tenant, Usage.adapter)
    if tenant is not None:
        query = query.where(Usage.tenant == tenant)
    if since is not None:
        query = query.where(Usage.hour >= since)
    if until is not None:
        query = query.where(Usage.hour < until)
    rows = session.execute(query.order_by(Usage.tenant, Usage.adapter))
    return [(owner, adapter, _consumption(*values)) for owner, adapter, *values in rows]


def _consumption(*values: float) -> Consumption:
    # A sum of integers is a Decimal on PostgreSQL.
    requests, input_tokens, output_tokens, slot_seconds, cold_starts = values
    return Consumption(
        int(requests), int(input_tokens), int(output_tokens), float(slot_seconds), int(cold_starts)
    )
