"""Usage: what is counted, for whom, and that it isn't lost."""

import csv
import io
from datetime import timedelta
from typing import Any

import httpx
import pytest

from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.tables import now
from adapters_registry.records.tenants import Quota, create_tenant, delete_tenant, set_quota
from adapters_registry.records.usage.consumption import Consumption, hour_of
from adapters_registry.records.usage.reading import read_usage
from adapters_registry.records.usage.recording import add_usage
from adapters_registry.registry import Registry
from server.auth import Keys
from server.tenancy.usage import UsageBuffer
from tests.server.answers import CHAT, assert_error
from tests.server.fake_engine import INPUT_TOKENS, OUTPUT_TOKENS


async def usage(client: httpx.AsyncClient, query: str = "") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (await client.get(f"/admin/usage{query}")).json()["data"]
    return rows


async def test_requests_are_counted_by_tenant_and_adapter(
    client: httpx.AsyncClient, home: VersionRecord
) -> None:
    for model in ("home", "home@1", "base", "nope"):
        await client.post(CHAT, json={"model": model})
    base, adapter = await usage(client, "?tenant=default")
    assert (base["adapter"], base["requests"], base["cold_starts"]) == ("base", 1, 0)
    assert (base["input_tokens"], base["output_tokens"]) == (INPUT_TOKENS, OUTPUT_TOKENS)
    assert (adapter["adapter"], adapter["requests"]) == ("default/home", 2)
    assert adapter["output_tokens"] == 2 * OUTPUT_TOKENS
    assert adapter["cold_starts"] == 1, "the second found it in a slot"
    assert adapter["slot_seconds"] > 0
    table = await client.get("/admin/usage?format=csv")
    assert table.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(table.text)))
    assert [(row["adapter"], row["requests"]) for row in rows] == [
        ("base", "1"),
        ("default/home", "2"),
    ]


async def test_tokens_are_counted_by_service_tier(
    client: httpx.AsyncClient, registry: Registry
) -> None:
    registry.apply(set_quota, "default", Quota(service_tiers=("flex", "priority")))
    for tier in ("flex", "priority", "priority", "default", None):
        await client.post(CHAT, json={"model": "base", "service_tier": tier})
    (row,) = await usage(client)
    assert (row["input_tokens"], row["output_tokens"]) == (5 * INPUT_TOKENS, 5 * OUTPUT_TOKENS)
    for tier, requests in (("flex", 1), ("priority", 2)):
        assert row[f"{tier}_input_tokens"] == requests * INPUT_TOKENS
        assert row[f"{tier}_output_tokens"] == requests * OUTPUT_TOKENS
    table = await client.get("/admin/usage?format=csv")
    (as_csv,) = csv.DictReader(io.StringIO(table.text))
    assert as_csv["flex_output_tokens"] == str(OUTPUT_TOKENS)


async def test_a_tenant_sees_its_own(
    client: httpx.AsyncClient, registry: Registry, keys: Keys
) -> None:
    registry.apply(create_tenant, "acme")
    await client.post(CHAT, json={"model": "base"})
    client.headers["Authorization"] = f"Bearer {keys.create('acme', ['adapters', 'inference'])}"
    assert await usage(client) == []
    assert_error(await client.get("/admin/usage?tenant=default"), 404, "not_found")
    await client.post(CHAT, json={"model": "base"})
    assert [row["tenant"] for row in await usage(client)] == ["acme"]


async def test_a_name_that_is_given_again_has_used_nothing(
    client: httpx.AsyncClient, registry: Registry, keys: Keys
) -> None:
    ids = []
    for _ in range(2):
        ids.append(registry.apply(create_tenant, "acme").id)
        headers = {"Authorization": f"Bearer {keys.create('acme', ['adapters', 'inference'])}"}
        before = await client.get("/admin/usage", headers=headers)
        assert before.json()["data"] == [], "also in the hour in which the name was given again"
        await client.post(CHAT, json={"model": "base"}, headers=headers)
        (own,) = (await client.get("/admin/usage", headers=headers)).json()["data"]
        assert (own["tenant_id"], own["requests"]) == (ids[-1], 1)
        registry.apply(delete_tenant, "acme")
    rows = await usage(client, "?tenant=acme")
    assert sorted(row["tenant_id"] for row in rows) == sorted(ids), "an admin can tell them apart"


@pytest.mark.parametrize("query", ["since=yesterday", "until=2026-01-01T00:00:00", "format=xml"])
async def test_bad_questions(client: httpx.AsyncClient, query: str) -> None:
    assert_error(await client.get(f"/admin/usage?{query}"), 400, "invalid_request")


def test_hours_add_up_and_are_told_apart(registry: Registry) -> None:
    hour = hour_of(now())
    for at, number in ((hour, 1), (hour, 2), (hour - timedelta(hours=1), 4)):
        with registry.session() as session:
            add_usage(session, {(at, "1", "acme", "base"): Consumption(number, number, 0, 0.5)})
    with registry.session() as session:
        assert read_usage(session, since=hour) == [("acme", "1", "base", Consumption(3, 3, 0, 1.0))]
        assert read_usage(session, until=hour) == [("acme", "1", "base", Consumption(4, 4, 0, 0.5))]
        assert read_usage(session)[0].consumption.requests == 7
        assert read_usage(session, tenant="other") == []


def test_what_cannot_be_recorded_is_kept(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    showback = UsageBuffer(registry)
    showback.add("1", "acme", "base", Consumption(1))

    def fail() -> None:
        raise OSError

    with monkeypatch.context() as patched:
        patched.setattr(registry, "session", fail)
        with pytest.raises(OSError):  # noqa: PT011
            showback.save()
    showback.add("1", "acme", "base", Consumption(1))
    for _ in range(2):
        showback.save()
    with registry.session() as session:
        assert read_usage(session) == [("acme", "1", "base", Consumption(2))]


async def test_without_a_beginning_it_is_that_of_the_last_month(
    client: httpx.AsyncClient, registry: Registry
) -> None:
    hour = hour_of(now())
    for days in (1, 40):
        with registry.session() as session:
            add_usage(
                session, {(hour - timedelta(days=days), "1", "acme", "base"): Consumption(days)}
            )
    assert [row["requests"] for row in await usage(client)] == [1]
    until = (hour - timedelta(days=30)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert [row["requests"] for row in await usage(client, f"?until={until}")] == [40]
    assert [row["requests"] for row in await usage(client, "?since=2020-01-01T00:00:00Z")] == [41]
