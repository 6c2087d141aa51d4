"""Regular work: follow the changes of other servers, record usage, remove what is not needed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import datetime

from sqlalchemy.exc import SQLAlchemyError

from adapters_registry.collection import Collector
from adapters_registry.errors import RegistryError
from adapters_registry.records.tables import now
from adapters_registry.records.usage.consumption import DAY, day_of
from adapters_registry.records.usage.recording import (
    HOURS_KEPT_FOR,
    has_hours,
    oldest_usage,
    roll_up,
)
from adapters_registry.registry import Registry
from server.residency.leases import Leases
from server.workers import Workers

log = logging.getLogger(__name__)

FOLLOW_INTERVAL_SECONDS = 0.5
BOOKKEEPING_INTERVAL_SECONDS = 10.0
ROLL_UP_INTERVAL_SECONDS = 6 * 3600.0
MIN_COLLECT_SECONDS, MAX_COLLECT_SECONDS = 1.0, 600.0

Books = Sequence[Callable[[], None]]
"""Functions that write to the database what requests left in memory."""


async def follow_changes(
    registry: Registry, leases: Leases, interval_seconds: float = FOLLOW_INTERVAL_SECONDS
) -> None:
    """Read the changes of other servers on the same database, within a second."""
    reachable = True
    while True:
        await asyncio.sleep(interval_seconds)
        try:
            await asyncio.to_thread(registry.refresh)
        except SQLAlchemyError as error:
            if reachable:
                log.error(
                    "the registry's database does not answer; this server goes on with what it "
                    "knows: %s",
                    error,
                )
            reachable = False
        else:
            reachable = True
        leases.follow(registry.catalog)


async def keep_books(books: Books, interval_seconds: float) -> None:
    """Write the books every few seconds."""
    while True:
        await asyncio.sleep(interval_seconds)
        await asyncio.to_thread(write_books, books)


async def collect_regularly(collector: Collector, interval_seconds: float) -> None:
    """Remove files and records that are not needed any more, at regular times."""
    workers = Workers("collect", 1)
    while True:
        await asyncio.sleep(interval_seconds)
        try:
            await workers.run(collector.collect)
        except (SQLAlchemyError, RegistryError, OSError) as error:
            log.warning("files and records that nothing needs stay for now: %s", error)


async def roll_up_regularly(registry: Registry, interval_seconds: float) -> None:
    """Add up usage that is older than 90 days by the day, at regular times."""
    workers = Workers("roll-up", 1)
    while True:
        await asyncio.sleep(interval_seconds)
        try:
            await workers.run(roll_up_usage, registry, now())
        except (SQLAlchemyError, RegistryError) as error:
            log.warning("old usage stays by the hour for now: %s", error)


def roll_up_usage(registry: Registry, moment: datetime) -> None:
    """Add up usage from over 90 days before a moment by the day, in a transaction for each day."""
    end = day_of(moment - HOURS_KEPT_FOR)
    with registry.session() as session:
        oldest = oldest_usage(session)
        day = day_of(oldest) if oldest else end
        days = []
        while day < end:
            if has_hours(session, day):
                days.append(day)
            day += DAY
    for day in days:
        registry.apply(roll_up, day)


def collect_interval(grace_seconds: float) -> float:
    """Return the seconds between two collections, few enough to keep to the time of grace."""
    return min(MAX_COLLECT_SECONDS, max(MIN_COLLECT_SECONDS, grace_seconds / 6))


def write_books(books: Books) -> None:
    """Call each of the functions. A failure is logged, and the function is called again later."""
    for write in books:
        try:
            write()
        except SQLAlchemyError as error:
            log.error("usage, or when keys were last used, cannot be recorded: %s", error)
