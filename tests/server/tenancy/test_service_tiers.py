"""Service tiers: what each API's values mean, who may use which, and what a tier is worth."""

from __future__ import annotations

from collections import Counter
from typing import Any

import httpx
import pytest

from adapters_registry.records.tenants import Quota, set_quota
from adapters_registry.registry import Registry
from server.errors import InvalidRequest
from server.tenancy.fair_queue import FairQueue
from server.tenancy.service_tiers import DEFAULT, FLEX, PRIORITY, asked_tier, usable_tier
from tests.server.answers import CHAT, assert_error

MESSAGES = "/v1/messages"


def test_each_api_has_its_own_values() -> None:
    def asked(value: object, is_anthropic: bool) -> object:
        body: dict[str, object] = {"service_tier": value}
        tier = asked_tier(body, is_anthropic=is_anthropic)
        assert not body, "vLLM's types don't all know the field"
        return tier

    of_openai: tuple[tuple[object, object], ...] = (
        ("auto", DEFAULT),
        ("default", DEFAULT),
        ("scale", DEFAULT),
        ("flex", FLEX),
        ("priority", PRIORITY),
        ("fast", PRIORITY),
        ("ultrafast", PRIORITY),
        (None, None),
    )
    for value, tier in of_openai:
        assert asked(value, is_anthropic=False) is tier
    assert asked("auto", is_anthropic=True) is PRIORITY
    assert asked("standard_only", is_anthropic=True) is DEFAULT
    assert asked_tier({}, is_anthropic=True) is None
    wrong: tuple[tuple[object, bool], ...] = (
        ("standard_only", False),
        ("flex", True),
        ("", False),
        ([], True),
    )
    for value, is_anthropic in wrong:
        with pytest.raises(InvalidRequest) as error:
            asked(value, is_anthropic)
        assert error.value.param == "service_tier"


def test_a_tier_that_is_not_allowed_falls_back_to_the_default() -> None:
    assert usable_tier(FLEX, ("flex",)) is FLEX
    assert usable_tier(PRIORITY, ("flex",)) is DEFAULT
    assert usable_tier(DEFAULT, ()) is DEFAULT
    assert usable_tier(None, ("flex", "priority")) is DEFAULT


def served(weights: dict[str, float], num_admitted: int = 4000) -> Counter[str]:
    """How many prompts of each account run, if all always have some waiting."""
    queue, counts = FairQueue(4, 10_000), Counter[str]()
    waiting: Counter[str] = Counter()
    while counts.total() < num_admitted:
        for account, weight in weights.items():
            while waiting[account] < 8:
                queue.ask(account, weight, 10)
                waiting[account] += 1
        for ticket in queue.advance():
            waiting[ticket.tenant] -= 1
            counts[ticket.tenant] += 1
            queue.charge(ticket, 10)
            queue.leave(ticket)
    return counts


def test_tiers_get_tokens_by_their_weights() -> None:
    tiers = {tier.account_of("acme"): tier.weight_factor for tier in (DEFAULT, FLEX, PRIORITY)}
    assert len(tiers) == 3
    counts = served({**tiers, DEFAULT.account_of("other"): 1})
    other = counts["other"]
    assert counts["acme"] == pytest.approx(other, rel=0.05)
    assert counts["acme:flex"] == pytest.approx(other / 4, rel=0.05)
    assert counts["acme:priority"] == pytest.approx(other * 4, rel=0.05)


@pytest.mark.parametrize(
    ("path", "asked", "allowed", "used"),
    [
        (CHAT, None, ("flex", "priority"), "default"),
        (CHAT, "auto", ("flex", "priority"), "default"),
        (CHAT, "flex", ("flex",), "flex"),
        (CHAT, "flex", (), "default"),
        (CHAT, "priority", ("flex", "priority"), "priority"),
        (CHAT, "priority", ("flex",), "default"),
        (MESSAGES, "auto", ("priority",), "priority"),
        (MESSAGES, "auto", ("flex",), "default"),
        (MESSAGES, "standard_only", ("priority",), "default"),
    ],
)
async def test_the_tier_that_was_used_is_in_the_request_log(
    client: httpx.AsyncClient,
    registry: Registry,
    path: str,
    asked: str | None,
    allowed: tuple[str, ...],
    used: str,
) -> None:
    registry.apply(set_quota, "default", Quota(service_tiers=allowed))
    body: dict[str, Any] = {"model": "base", "service_tier": asked}
    assert (await client.post(path, json=body)).status_code == 200
    (row,) = (await client.get("/admin/requests?model=base")).json()["data"]
    assert row["service_tier"] == used


async def test_other_values_are_refused(client: httpx.AsyncClient) -> None:
    for path, value in ((CHAT, "fastest"), (CHAT, 3), (MESSAGES, "flex")):
        refused = await client.post(path, json={"model": "base", "service_tier": value})
        assert assert_error(refused, 400, "invalid_request")["param"] == "service_tier"


async def test_the_policy_is_part_of_the_quota(
    client: httpx.AsyncClient, registry: Registry
) -> None:
    path = "/admin/tenants/default/quota"
    tiers = ["priority", "flex", "flex"]
    refused = await client.put(path, json={"service_tiers": tiers})
    assert_error(refused, 400, "invalid_request")
    for _ in range(2):
        answer = await client.put(path, json={"service_tiers": tiers[:2]})
        assert answer.json()["quota"]["service_tiers"] == ["flex", "priority"]
    assert registry.catalog.tenants["default"].quota == Quota(service_tiers=("flex", "priority"))
    assert len(registry.audit(action="tenant.quota")) == 1, "the second one changed nothing"
    assert_error(await client.put(path, json={"service_tiers": ["x"]}), 400, "invalid_request")
    assert (await client.put(path, json={})).json()["quota"]["service_tiers"] == []
