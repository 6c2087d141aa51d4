"""Sums of usage: they are what the hours add up to, whoever writes, removes or migrates."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.store import ContentStore
from adapters_registry.records import migrations
from adapters_registry.records.database import open_database
from adapters_registry.records.usage.consumption import (
    COLUMNS,
    DAY,
    DAYS,
    HOURS,
    MONTHS,
    TOTALS,
    Consumption,
    UsageKey,
)
from adapters_registry.records.usage.reading import (
    last_used_days,
    parts_of,
    read_daily_usage,
    read_usage,
    read_usage_by_tenant,
)
from adapters_registry.records.usage.recording import (
    add_usage,
    remove_oldest_day,
    roll_up,
)
from adapters_registry.records.usage.tables import DailyUsage, Usage
from adapters_registry.registry import Registry
from tests.adapters_registry.records.test_migrations import old_database
from tests.postgres import Postgres

HOUR = timedelta(hours=1)
FIRST = datetime(2026, 1, 30, 20, tzinfo=UTC)
NUM_HOURS = 75 * 24
TENANTS = ("acme", "globex")
ADAPTERS = ("acme/bot", "globex/bot", "base")


def random_usage(num: int = 400) -> dict[UsageKey, Consumption]:
    """Return usage of some hours of January to April, always the same."""
    dice = random.Random(7)
    used = {}
    for _ in range(num):
        tenant = dice.choice(TENANTS)
        at = FIRST + dice.randrange(NUM_HOURS) * HOUR
        numbers = [dice.randrange(1, 9) for _ in COLUMNS]
        used[at, f"id of {tenant}", tenant, dice.choice(ADAPTERS)] = Consumption(*numbers)
    return used


def expected(
    used: dict[UsageKey, Consumption], since: datetime | None, until: datetime | None
) -> dict[tuple[str, str], Consumption]:
    """Add up by tenant and adapter, an hour at a time."""
    sums: dict[tuple[str, str], Consumption] = {}
    for (hour, _, tenant, adapter), consumption in used.items():
        if (since is None or hour >= since) and (until is None or hour < until):
            sums[tenant, adapter] = sums.get((tenant, adapter), Consumption()) + consumption
    return sums


def read(registry: Registry, **filters: Any) -> dict[tuple[str, str], Consumption]:
    with registry.session() as session:
        found = read_usage(session, **filters)
    return {(used.tenant, used.adapter): used.consumption for used in found}


@pytest.fixture
def used(registry: Registry) -> dict[UsageKey, Consumption]:
    """Usage that was recorded in two halves."""
    used = random_usage()
    items = list(used.items())
    for half in (items[::2], items[1::2]):
        with registry.session() as session:
            add_usage(session, dict(half))
    return used


EDGES = [
    None,
    FIRST,
    datetime(2026, 2, 1, tzinfo=UTC),
    datetime(2026, 2, 1, 13, 30, tzinfo=UTC),
    datetime(2026, 2, 2, tzinfo=UTC),
    datetime(2026, 3, 1, 1, tzinfo=timezone(5 * HOUR)),
    datetime(2026, 4, 1, tzinfo=UTC),
    datetime(2026, 4, 9, 7, tzinfo=UTC),
]


def test_every_span_is_the_sum_of_its_hours(
    registry: Registry, used: dict[UsageKey, Consumption]
) -> None:
    for since, until in product(EDGES, EDGES):
        sums = expected(used, since, until)
        assert read(registry, since=since, until=until) == sums, (since, until)
        with registry.session() as session:
            by_tenant = read_usage_by_tenant(session, "base", since=since, until=until)
        for tenant, _, num_adapters, consumption in by_tenant:
            own = {adapter: s for (name, adapter), s in sums.items() if name == tenant}
            assert consumption == sum(own.values(), Consumption())
            assert num_adapters == len(own.keys() - {"base"})


def test_a_span_beyond_all_calendars_is_read(
    registry: Registry, used: dict[UsageKey, Consumption]
) -> None:
    first = datetime.min.replace(tzinfo=timezone(5 * HOUR))
    last = datetime.max.replace(tzinfo=timezone(-5 * HOUR))
    assert read(registry, since=first, until=last) == expected(used, None, None)
    assert read(registry, since=last) == {}


def test_filters_and_days(registry: Registry, used: dict[UsageKey, Consumption]) -> None:
    since, until = datetime(2026, 2, 3, tzinfo=UTC), datetime(2026, 3, 20, tzinfo=UTC)
    sums = expected(used, since, until)
    for given, own in (
        ({}, sums),
        ({"tenant": "acme"}, {k: s for k, s in sums.items() if k[0] == "acme"}),
        ({"tenant_id": "id of acme"}, {k: s for k, s in sums.items() if k[0] == "acme"}),
        ({"adapter": "base"}, {k: s for k, s in sums.items() if k[1] == "base"}),
    ):
        assert read(registry, since=since, until=until, **given) == own
        with registry.session() as session:
            days = read_daily_usage(session, since=since, until=until, **given)
        assert sum(days.values(), Consumption()) == sum(own.values(), Consumption())
        assert list(days) == sorted(days)
        assert min(days) >= since.date()
        assert max(days) < until.date()


def test_a_span_is_read_from_the_largest_sums_that_fit() -> None:
    february, march = datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)
    assert parts_of(february, march) == [(MONTHS, february, march)]
    assert parts_of(None, None) == [(MONTHS, None, None)]
    since, until = february - DAY - HOUR, march + DAY + HOUR
    assert parts_of(since, until) == [
        (HOURS, since, february - DAY),
        (DAYS, february - DAY, february),
        (MONTHS, february, march),
        (DAYS, march, march + DAY),
        (HOURS, march + DAY, until),
    ]
    assert parts_of(since, since + HOUR) == [(HOURS, since, since + HOUR)]


def test_the_last_day_of_use(registry: Registry, used: dict[UsageKey, Consumption]) -> None:
    with registry.session() as session:
        found = last_used_days(session, ["acme/bot", "base", "acme/never"])
        assert last_used_days(session, []) == {}
    last = {
        adapter: max(hour for hour, _, _, name in used if name == adapter).date()
        for adapter in ("acme/bot", "base")
    }
    assert found == last


def sums_in(registry: Registry) -> list[tuple[float, ...]]:
    """Return each table's sums over all that it has."""
    with registry.session() as session:
        rows = [
            session.execute(select(*(func.sum(getattr(s.table, name)) for name in COLUMNS))).one()
            for s in (HOURS, DAYS, MONTHS, TOTALS)
        ]
    return [tuple(map(float, row)) for row in rows]


def test_what_is_removed_leaves_the_sums(
    registry: Registry, used: dict[UsageKey, Consumption]
) -> None:
    before = datetime(2026, 3, 3, 11, tzinfo=UTC)
    registry.apply(roll_up, datetime(2026, 2, 5, tzinfo=UTC))
    assert read(registry) == expected(used, None, None)
    removed = 0
    while True:
        with registry.session() as session:
            num = remove_oldest_day(session, before)
        removed += num
        if not num:
            break
    assert 0 < removed <= sum(hour < before for hour, *_ in used)
    assert read(registry) == expected(used, before, None)
    assert len(set(sums_in(registry))) == 1
    with registry.session() as session:
        assert min(read_daily_usage(session)) >= date(2026, 3, 3)


def test_servers_that_record_at_the_same_time_lose_nothing(
    postgres: Postgres, tmp_path: Path, tiny_base: BaseSpec
) -> None:
    url = postgres.migrated_database()
    servers = [Registry(url, ContentStore(tmp_path / name), tiny_base) for name in ("a", "b")]
    used = random_usage(60)
    oldest = min(hour for hour, *_ in used)

    def record(server: Registry) -> None:
        for _ in range(10):
            with server.session() as session:
                add_usage(session, used)

    def remove() -> int:
        with servers[0].session() as session:
            return remove_oldest_day(session, oldest + HOUR)

    with ThreadPoolExecutor(3) as pool:
        recording = [pool.submit(record, server) for server in servers]
        removing = [pool.submit(remove) for _ in range(10)]
        for recorded in recording:
            recorded.result()
        for removed in removing:
            removed.result()
    while remove():
        pass
    kept = {key: consumption for key, consumption in used.items() if key[0] >= oldest + HOUR}
    once = expected(kept, None, None)
    assert read(servers[1]) == {key: sum([one] * 20, Consumption()) for key, one in once.items()}
    assert len(set(sums_in(servers[0]))) == 1
    for server in servers:
        server.close()


@pytest.mark.parametrize("num", [0, 200])
def test_a_database_without_sums_gets_them(
    database_url: str, tmp_path: Path, tiny_base: BaseSpec, num: int
) -> None:
    engine = old_database(database_url, "0012")
    of_tiers = dict.fromkeys((n for n in COLUMNS if n.startswith(("flex", "priority"))), 0)
    used = {key: replace(consumption, **of_tiers) for key, consumption in random_usage(num).items()}
    with engine.begin() as connection:
        for (hour, tenant_id, tenant, adapter), consumption in used.items():
            row = {"hour": hour, "tenant_id": tenant_id, "tenant": tenant, "adapter": adapter}
            row |= {
                name: value for name, value in vars(consumption).items() if name not in of_tiers
            }
            connection.execute(Usage.__table__.insert().values(**row))  # type: ignore[attr-defined]
    migrations.upgrade(engine)
    engine.dispose()
    registry = Registry(database_url, ContentStore(tmp_path / "content"), tiny_base)
    assert read(registry) == expected(used, None, None)
    with registry.session() as session:
        days = read_daily_usage(session)
    assert sum(days.values(), Consumption()) == sum(used.values(), Consumption())
    if used:
        assert len(set(sums_in(registry))) == 1
    registry.close()


def test_moments_are_in_utc_whatever_the_databases_time_zone(
    postgres: Postgres, tmp_path: Path, tiny_base: BaseSpec
) -> None:
    url = f"{postgres.migrated_database()}?options=-c%20timezone%3DAmerica/New_York"
    registry = Registry(url, ContentStore(tmp_path / "content"), tiny_base)
    at = datetime(2026, 5, 1, tzinfo=UTC)
    with registry.session() as session:
        add_usage(session, {(at, "1", "acme", "base"): Consumption(1)})
    with registry.session() as session:
        assert list(read_daily_usage(session)) == [date(2026, 5, 1)]
        assert session.scalars(select(DailyUsage.day)).one().tzinfo is UTC
    registry.close()


def test_a_moment_with_another_offset_is_the_same_moment(database_url: str) -> None:
    engine = open_database(database_url)
    at = datetime(2026, 5, 1, 12, tzinfo=timezone(2 * HOUR))
    insert = Usage.__table__.insert()  # type: ignore[attr-defined]
    with engine.begin() as connection:
        names = {"tenant_id": "1", "tenant": "acme", "adapter": "base"}
        connection.execute(insert.values(hour=at, **names, **vars(Consumption(1))))
        assert connection.scalar(select(Usage.hour)) == at
    engine.dispose()
