"""Usage in money: shares of the machines' cost, and what dedicated deployments would cost."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path

import pytest

from adapters_registry.records.servers import ServerFigures, report_server
from adapters_registry.records.tables import now
from adapters_registry.records.tenants import create_tenant
from adapters_registry.records.usage.consumption import Consumption
from adapters_registry.records.usage.reading import UsedByTenant
from adapters_registry.records.usage.recording import add_usage
from adapters_registry.registry import Registry
from adapters_registry.rollout.tables import ServerReport
from server.auth import Keys
from server.console.pages.money import MAX_ROWS, Bill, Cost, bills, hours_between
from server.settings import Settings
from tests.server.console.conftest import Browser

MARCH = "since=2026-03-01&until=2026-03-31"
START = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, max_loras=4, machine_price=2.0, currency="EUR")


@pytest.fixture
def used(registry: Registry) -> None:
    """Usage of March, from its second day on: acme has three quarters of the tokens."""
    ids = {name: registry.apply(create_tenant, name).id for name in ("acme", "other")}
    first = START + 24 * HOUR
    with registry.session() as session:
        add_usage(
            session,
            {
                (first, ids["acme"], "acme", "acme/bot"): Consumption(1, 500, 100, 10.0),
                (first, ids["acme"], "acme", "acme/cat"): Consumption(1, 100, 0, 20.0),
                (first, ids["acme"], "acme", "base"): Consumption(1, 40, 10),
                (first, ids["other"], "other", "acme/bot"): Consumption(1, 200, 50, 70.0),
            },
        )


def cells(text: str) -> dict[str, list[str]]:
    """Return the cells of the table in money, by the first one of each row."""
    table = text.split('id="in-money"')[1]
    rows = re.findall("<tr>(.*?)</tr>", table, re.DOTALL)[1:]
    found = [re.findall("<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    plain = [[unescape(re.sub("<.*?>", "", cell)) for cell in row] for row in found]
    return {row[0]: row[1:] for row in plain}


@pytest.mark.usefixtures("used")
async def test_each_tenants_part_stands_beside_dedicated_machines(admin: Browser) -> None:
    page = await admin.open(f"/console/usage?{MARCH}")
    hours = 30 * 24
    assert f"1 machine × {hours} hours × 2.00 EUR = <strong>1,440.00 EUR</strong>" in page.text
    expected = {
        "acme": ["75.0 %", "1,080.00 EUR", "30.0 %", "432.00 EUR", "2", "2,880.00 EUR"],
        "other": ["25.0 %", "360.00 EUR", "70.0 %", "1,008.00 EUR", "1", "1,440.00 EUR"],
    }
    assert cells(page.text) == expected
    narrowed = await admin.open(f"/console/usage?{MARCH}&tenant=other")
    assert cells(narrowed.text) == {"other": expected["other"]}, "the share is of everyone's"


@pytest.mark.usefixtures("used")
async def test_the_servers_that_run_now_are_counted(admin: Browser, registry: Registry) -> None:
    with registry.session() as session:
        for name in ("a", "b", "c"):
            report_server(session, name, name, now(), ServerFigures("ready", 4))
        session.get_one(ServerReport, "c").seen_at = now() - timedelta(minutes=5)
    page = await admin.open(f"/console/usage?{MARCH}")
    assert "2 machines × 720 hours" in page.text


@pytest.mark.usefixtures("used")
async def test_a_tenant_sees_no_money(browser: Browser, keys: Keys) -> None:
    await browser.log_in(keys.create("acme", ["adapters"]))
    page = await browser.open(f"/console/usage?{MARCH}")
    assert "acme/bot" in page.text
    assert "EUR" not in page.text


def test_hours_are_those_since_the_first_use() -> None:
    until = START + 10 * HOUR
    assert hours_between(START, until, START - HOUR) == 10
    assert hours_between(START, until, START + 4 * HOUR) == 6
    assert hours_between(START, until, until + HOUR) == 0
    assert hours_between(START, until, None) == 0


def test_many_tenants_are_shown_together() -> None:
    used = [UsedByTenant(f"t{i}", str(i), 1, Consumption(1, 10, 0)) for i in range(MAX_ROWS + 3)]
    everyone = sum((each.consumption for each in used), Consumption())
    cost = Cost(1.0, 2, 10.0)
    found = bills(used, everyone, cost)
    assert len(found) == MAX_ROWS + 1
    last = found[-1]
    assert (last.tenant, last.num_tenants, last.num_adapters) == ("", 3, 3)
    assert sum(bill.by_tokens for bill in found) == pytest.approx(cost.amount)
    assert sum(bill.by_slot_time for bill in found) == 0, "nobody held a slot"


def test_nothing_used_costs_nothing() -> None:
    base_alone = UsedByTenant("acme", "1", 0, Consumption(1))
    (bill,) = bills([base_alone], Consumption(1), Cost(1.0, 1, 1.0))
    assert bill == Bill("acme", 1, 0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert bills([], Consumption(), Cost(1.0, 1, 1.0)) == []
