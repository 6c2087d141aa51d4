"""The page of usage: whose it shows, its days, its table a page at a time, and its CSV."""

from __future__ import annotations

import csv
import io
import re
from datetime import UTC, date, datetime
from html import unescape
from urllib.parse import parse_qs

import pytest

from adapters_registry.records.tenants import create_tenant
from adapters_registry.records.usage.consumption import Consumption
from adapters_registry.records.usage.reading import read_daily_usage
from adapters_registry.records.usage.recording import add_usage
from adapters_registry.registry import Registry
from server.auth import Keys
from server.console.pages.usage import PAGE_SIZE, every_day
from tests.server.console.conftest import Browser

MAY = "since=2026-05-01&until=2026-05-31"


def at(day: int, hour: int = 0) -> datetime:
    return datetime(2026, 5, day, hour, tzinfo=UTC)


@pytest.fixture(autouse=True)
def used(registry: Registry) -> None:
    """Two tenants' usage of two days in May."""
    ids = {name: registry.apply(create_tenant, name).id for name in ("acme", "other")}
    with registry.session() as session:
        add_usage(
            session,
            {
                (at(3, 1), ids["acme"], "acme", "acme/bot"): Consumption(1, 1_000, 200, 1.5, 1),
                (at(3, 23), ids["acme"], "acme", "acme/bot"): Consumption(1, 500, 100),
                (at(5), ids["acme"], "acme", "base"): Consumption(2, 30, 40),
                (at(31, 23), ids["other"], "other", "other/bot"): Consumption(7, 7_777, 1),
            },
        )


def days_of(text: str) -> list[tuple[str, str, str]]:
    return re.findall(r'data-day="(.*?)" data-in="(.*?)" data-out="(.*?)"', text)


async def test_an_admin_sees_everyones_days(admin: Browser) -> None:
    page = await admin.open(f"/console/usage?{MAY}")
    assert page.status_code == 200
    days = days_of(page.text)
    assert days[:3] == [
        ("2026-05-03", "1500", "300"),
        ("2026-05-04", "0", "0"),
        ("2026-05-05", "30", "40"),
    ]
    assert days[-1] == ("2026-05-31", "7777", "1")
    assert len(days) == 29
    assert (
        page.text.index(">other/bot<") < page.text.index(">acme/bot<") < page.text.index(">base<")
    )
    for narrowed, expected in (("tenant=acme", 3), ("adapter=acme/bot", 1)):
        page = await admin.open(f"/console/usage?{MAY}&{narrowed}")
        assert len(days_of(page.text)) == expected
        assert "other/bot" not in page.text


async def test_a_tenant_sees_its_own(browser: Browser, keys: Keys) -> None:
    await browser.log_in(keys.create("acme", ["adapters"]))
    for query in (MAY, f"{MAY}&tenant=acme"):
        page = await browser.open(f"/console/usage?{query}")
        assert "acme/bot" in page.text
        assert "other/bot" not in page.text
        table = await browser.open(f"/console/usage/csv?{query}")
        assert "other" not in table.text
    assert (await browser.open(f"/console/usage?{MAY}&tenant=other")).status_code == 404
    assert (await browser.open(f"/console/usage/csv?{MAY}&tenant=other")).status_code == 404


async def test_the_table_is_given_as_csv(admin: Browser) -> None:
    page = await admin.open(f"/console/usage?{MAY}&tenant=acme")
    link = re.search(r'href="(/console/usage/csv[^"]*)"', page.text)
    assert link
    answer = await admin.open(link[1].replace("&amp;", "&"))
    assert answer.headers["content-type"].startswith("text/csv")
    assert "usage-2026-05-01-2026-05-31.csv" in answer.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["adapter"], row["input_tokens"]) for row in rows] == [
        ("acme/bot", "1500"),
        ("base", "30"),
    ]


async def test_without_days_it_is_the_present_month(admin: Browser) -> None:
    page = await admin.open("/console/usage?tenant=&adapter=&since=&until=")
    assert page.status_code == 200
    assert (await admin.open("/console/usage?until=2026-05-04")).text.count("acme/bot")
    nothing = await admin.open("/console/usage?since=2026-01-01&until=2026-02-01")
    assert "Nothing was used" in nothing.text


@pytest.mark.parametrize(
    "query",
    [
        "since=2026-05-31&until=2026-05-01",
        "until=9999-12-31",
        "since=0001-01-01",
        "since=x",
        "page=0",
    ],
)
async def test_days_that_make_no_sense_are_refused(admin: Browser, query: str) -> None:
    assert (await admin.open(f"/console/usage?{query}")).status_code in (400, 422)


async def test_months_lead_to_months(admin: Browser) -> None:
    page = await admin.open("/console/usage?since=2026-05-09&until=2026-05-20&tenant=acme")
    found = re.findall(r'<a href="/console/usage\?([^"]+)">The month', page.text)
    before, after = (parse_qs(unescape(query)) for query in found)
    assert (before["since"], before["until"]) == (["2026-04-01"], ["2026-04-30"])
    assert (after["since"], after["until"]) == (["2026-06-01"], ["2026-06-30"])
    assert before["tenant"] == ["acme"]
    now_on = await admin.open("/console/usage")
    assert "The month before" in now_on.text
    assert "The month after" not in now_on.text
    first = await admin.open("/console/usage?since=2000-01-02&until=2000-02-01")
    assert "The month before" not in first.text


async def test_without_a_price_there_is_no_money(admin: Browser) -> None:
    assert "In money" not in (await admin.open(f"/console/usage?{MAY}")).text


async def test_the_table_has_pages(admin: Browser, registry: Registry) -> None:
    many = {
        (at(9), "", "default", f"default/bot-{index:03}"): Consumption(1, 10_000 + index, 0)
        for index in range(2 * PAGE_SIZE)
    }
    with registry.session() as session:
        add_usage(session, many)
    seen: list[str] = []
    path = f"/console/usage?{MAY}"
    while path:
        page = await admin.open(path)
        seen += re.findall(r'adapter=([\w%-]+)[^"]*">', page.text.split("By tenant and adapter")[1])
        following = re.search(r'<a href="([^"]+)" rel="next">', page.text)
        path = following[1].replace("&amp;", "&") if following else ""
    names = [name for name in seen if "bot-" in name]
    assert len(set(names)) == 2 * PAGE_SIZE
    assert names == sorted(names, reverse=True)


def test_daily_usage_adds_up_hours(registry: Registry) -> None:
    with registry.session() as session:
        days = read_daily_usage(session, tenant="acme", since=at(1), until=at(5))
    assert days == {date(2026, 5, 3): Consumption(2, 1_500, 300, 1.5, 1)}


def test_no_usage_has_no_days() -> None:
    assert every_day({}) == {}


async def test_a_hostile_filter_stays_text(admin: Browser) -> None:
    page = await admin.open(f'/console/usage?{MAY}&adapter="><script>alert(1)</script>')
    assert "<script>alert" not in page.text
