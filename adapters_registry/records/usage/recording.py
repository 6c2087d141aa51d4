"""Adds usage to the hours and to all sums, adds up old hours by the day, and removes old usage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from adapters_registry.records.change import Change
from adapters_registry.records.usage.consumption import (
    COLUMNS,
    CONSUMER,
    DAY,
    DAYS,
    HOURS,
    MONTHS,
    TOTALS,
    Consumption,
    Sums,
    UsageKey,
    day_of,
)
from adapters_registry.records.usage.tables import Usage

HOURS_KEPT_FOR = 90 * DAY
"""Usage that is older is added up by the day."""


def add_usage(session: Session, used: Mapping[UsageKey, Consumption]) -> None:
    """Add usage to the hours and to all sums. Several servers may do this at the same time.

    All of them lock the rows in the same order, so that there is no deadlock.
    """
    for sums in (HOURS, DAYS, MONTHS, TOTALS):
        _add(session, sums, used)


def _add(session: Session, sums: Sums, used: Mapping[UsageKey, Consumption]) -> None:
    added: dict[tuple[datetime | str, ...], Consumption] = defaultdict(Consumption)
    for (hour, *consumer), consumption in used.items():
        added[sums.begin_of(hour), *consumer[: len(sums.consumer)]] += consumption
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    new = dialect.insert(sums.table)
    both = {name: getattr(sums.table, name) + getattr(new.excluded, name) for name in COLUMNS}
    upsert = new.on_conflict_do_update(index_elements=list(sums.key), set_=both)
    rows = [
        {**dict(zip(sums.key, key, strict=True)), **asdict(added[key])} for key in sorted(added)
    ]
    session.connection().execute(upsert, rows)


def oldest_usage(session: Session) -> datetime | None:
    """Return the first hour for which there is usage, or None."""
    return session.scalar(select(Usage.hour).order_by(Usage.hour).limit(1))


def has_hours(session: Session, day: datetime) -> bool:
    """Return whether a day, which begins at `day`, has hours that `roll_up` would add up."""
    later = select(Usage.hour).where(Usage.hour > day, Usage.hour < day + DAY).limit(1)
    return session.scalar(later) is not None


def roll_up(change: Change, day: datetime) -> None:
    """Add up the hours of a day into its first hour. No sum over a whole day changes."""
    session = change.session
    keep_out_additions(session)
    of_day = (Usage.hour >= day, Usage.hour < day + DAY)
    found = _sums_by_consumer(session, *of_day)
    session.execute(delete(Usage).where(*of_day))
    for consumer, used in found.items():
        names = dict(zip(CONSUMER, consumer, strict=True))
        session.add(Usage(hour=day, **names, **asdict(used)))


def remove_oldest_day(session: Session, before: datetime) -> int:
    """Remove the oldest day's hours before a moment, from all sums, too.

    Returns how many rows of hours were removed: 0 if there is no usage from before the moment.
    """
    keep_out_additions(session)
    oldest = oldest_usage(session)
    if oldest is None or oldest >= before:
        return 0
    day = day_of(oldest)
    end = min(before, day + DAY)
    found = _sums_by_consumer(session, Usage.hour < end)
    for sums in (DAYS, MONTHS, TOTALS):
        _add(session, sums, {(day, *consumer): -used for consumer, used in found.items()})
        moment, requests = (getattr(sums.table, name) for name in (sums.moment, "requests"))
        session.execute(delete(sums.table).where(moment < end, requests <= 0))
    removed: Any = session.execute(delete(Usage).where(Usage.hour < end))
    return int(removed.rowcount)


def keep_out_additions(session: Session) -> None:
    """Let no other transaction add usage before this one has ended.

    Otherwise what is added between reading and removing would be removed without being read.
    """
    connection = session.connection()
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("LOCK TABLE usage IN SHARE ROW EXCLUSIVE MODE")
    elif not connection.connection.driver_connection.in_transaction:  # type: ignore[union-attr]
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _sums_by_consumer(
    session: Session, *of: ColumnElement[bool]
) -> dict[tuple[str, str, str], Consumption]:
    whose = [getattr(Usage, name) for name in CONSUMER]
    sums = [func.sum(getattr(Usage, name)) for name in COLUMNS]
    rows = session.execute(select(*whose, *sums).where(*of).group_by(*whose))
    return {(row[0], row[1], row[2]): Consumption.of(*row[3:]) for row in rows}
