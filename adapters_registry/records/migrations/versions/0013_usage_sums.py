"""Sums of usage by the day and by the month, and of everyone's by the day."""

from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

WHOSE = ("tenant_id", "tenant", "adapter")
USED = ("requests", "input_tokens", "output_tokens", "slot_seconds", "cold_starts")
DAY = timedelta(days=1)


def upgrade() -> None:
    _create("usage_of_days", "day", WHOSE)
    _create("usage_of_months", "month", WHOSE)
    _create("usage_in_all", "day", ())
    for table, moment in (("usage_of_days", "day"), ("usage_of_months", "month")):
        for column in WHOSE:
            op.create_index(f"ix_{table}_{column}", table, [column, moment])
    connection = op.get_bind()
    hours = _table("usage", "hour", WHOSE)
    for day in _days(connection, hours):
        _sum_up(hours, day, day + DAY, _table("usage_of_days", "day", WHOSE), day, WHOSE)
        _sum_up(hours, day, day + DAY, _table("usage_in_all", "day", ()), day, ())
    days = _table("usage_of_days", "day", WHOSE)
    for month in sorted({day.replace(day=1) for day in _days(connection, days)}):
        end = (month + 32 * DAY).replace(day=1)
        _sum_up(days, month, end, _table("usage_of_months", "month", WHOSE), month, WHOSE)


def _create(name: str, moment: str, whose: tuple[str, ...]) -> None:
    lengths = {"tenant_id": 32, "tenant": 64, "adapter": 192}
    counts = [
        sa.Column(column, sa.Float if column == "slot_seconds" else sa.BigInteger, nullable=False)
        for column in USED
    ]
    op.create_table(
        name,
        sa.Column(moment, sa.DateTime(timezone=True), primary_key=True),
        *(sa.Column(column, sa.String(lengths[column]), primary_key=True) for column in whose),
        *counts,
    )


def _table(name: str, moment: str, whose: tuple[str, ...]) -> sa.TableClause:
    columns: list[sa.ColumnClause[Any]] = [sa.column(column) for column in (*whose, *USED)]
    return sa.table(name, sa.column(moment, sa.DateTime(timezone=True)), *columns)


def _days(connection: sa.Connection, table: sa.TableClause) -> list[datetime]:
    """Return the days (UTC), from the first to the last one, of the moments in a table."""
    moment = table.columns[0]
    first, last = connection.execute(sa.select(sa.func.min(moment), sa.func.max(moment))).one()
    if first is None:
        return []
    first, last = (
        at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC) for at in (first, last)
    )
    day = first.replace(hour=0, minute=0, second=0, microsecond=0)
    return [day + number * DAY for number in range((last - day).days + 1)]


def _sum_up(
    source: sa.TableClause,
    since: datetime,
    until: datetime,
    target: sa.TableClause,
    moment: datetime,
    whose: tuple[str, ...],
) -> None:
    """Write the sums of the rows of a span, each under the moment."""
    key = [source.c[column] for column in whose]
    sums = [sa.func.sum(source.c[column]) for column in USED]
    begin = sa.literal(moment, sa.DateTime(timezone=True))
    of_span = source.columns[0] >= since, source.columns[0] < until
    rows = sa.select(begin, *key, *sums).where(*of_span).group_by(*key)
    if not whose:  # a sum without rows would be a row of nulls
        rows = rows.having(sa.func.count() > 0)
    op.execute(target.insert().from_select([*target.columns.keys()], rows))
