"""Quotas: the arithmetic, by plain calls."""

from contextlib import suppress
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from adapters_registry.records.tenants import Quota
from server.errors import InvalidRequest, NeverFits, OverQuota
from server.tenancy.demand import Demand
from server.tenancy.quotas import (
    FIRST_ANSWER_TOKENS,
    MAX_TENANTS,
    MINUTE_SECONDS,
    Quotas,
    Rate,
    limit_answer,
    limit_choices,
)

ONE = Demand(1, 1, 1, 4, 1)


@given(
    st.integers(1, 1000),
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 2000)), min_size=1, max_size=50),
)
def test_no_more_than_the_rate_is_ever_taken(limit: int, asked: list[tuple[float, int]]) -> None:
    """Whoever waits as told takes, in any time, the burst and the rate, and one request over."""
    rate, now, start = Rate(), 0.0, 0.0
    taken, largest = 0, 0
    for pause, amount in asked:
        now += pause + rate.wait_seconds(1, limit, now)
        assert rate.left(limit, now) >= 1
        rate.take(amount, limit, now)
        taken, largest = taken + amount, max(largest, amount)
        assert taken <= limit + (now - start) * limit / MINUTE_SECONDS + largest + 1e-3


def test_a_burst_is_paid_back_evenly() -> None:
    rate = Rate()
    rate.take(60, 60, now=0)
    assert (rate.left(60, 0), rate.left(60, 1), rate.left(60, 60)) == (0, 1, 60)
    assert rate.wait_seconds(1, 60, 0) == pytest.approx(1)
    rate.take(30, 60, now=0)  # debt
    assert rate.left(60, 0) == -30
    assert rate.wait_seconds(1, 60, 0) == pytest.approx(31)


def test_a_refused_request_counts_nowhere() -> None:
    quotas, quota = Quotas(spread=lambda: 0), Quota(requests_per_minute=1, concurrent_requests=1)
    first = quotas.enter("acme", quota, ONE, 0)
    for _ in range(3):
        with pytest.raises(OverQuota, match="at a time"):
            quotas.enter("acme", quota, ONE, 0)
    quotas.leave(first, 2, 3, 0)
    with pytest.raises(OverQuota, match="1 requests a minute") as refused:
        quotas.enter("acme", quota, ONE, 0)
    assert refused.value.retry_after_seconds == 60
    quotas.enter("other", quota, ONE, 0)
    quotas.enter("acme", quota, ONE, 60)


def test_without_a_quota_nothing_is_limited() -> None:
    quotas = Quotas()
    for _ in range(10_000):
        quotas.enter("acme", Quota(), ONE, 0)
    assert quotas.headers("acme", Quota(), 0) == {}


def test_tokens_of_requests_that_run_are_reserved() -> None:
    """However many come at once, no more tokens run than the quota holds."""
    quotas, quota = Quotas(spread=lambda: 0), Quota(tokens_per_minute=1000)
    demand = Demand(2, 2, prompt_tokens=20, longest_prompt_characters=80, answer_tokens=70)
    entered = []
    for _ in range(10_000):
        with suppress(OverQuota):
            entered.append(quotas.enter("acme", quota, demand, 0))
    assert [reservation.tokens for reservation in entered] == [300] * 3
    assert quotas.headers("acme", quota, 0)["x-ratelimit-remaining-tokens"] == "100"
    quotas.leave(entered[0], 20, 30, 0)
    assert quotas.headers("acme", quota, 0)["x-ratelimit-remaining-tokens"] == "350"
    quotas.leave(entered[1], 20, 430, 0)
    assert quotas.headers("acme", quota, 0)["x-ratelimit-remaining-tokens"] == "200"


def test_an_answer_of_unknown_length_reserves_what_the_tenants_answers_take() -> None:
    quotas, quota = Quotas(), Quota(tokens_per_minute=100_000)
    unknown = Demand(1, 1, 10, 40, None)
    first = quotas.enter("acme", quota, unknown, 0)
    assert first.tokens == 10 + FIRST_ANSWER_TOKENS
    for _ in range(1000):
        quotas.leave(quotas.enter("acme", quota, unknown, 0), 10, 30, 0)
    assert 30 <= quotas.enter("acme", quota, unknown, 0).tokens - 10 <= 32
    small = Quota(tokens_per_minute=20)
    assert Quotas().enter("acme", small, unknown, 0).tokens == 20, "it may still be short"


def test_what_can_never_fit_is_refused_for_good() -> None:
    quotas, quota = Quotas(), Quota(tokens_per_minute=100)
    with pytest.raises(NeverFits, match="120 tokens") as refused:
        quotas.enter("acme", quota, Demand(1, 4, 1, 4, 30), 0)
    assert "retry-after" not in refused.value.headers
    assert refused.value.headers["x-should-retry"] == "false"


def test_refused_clients_are_told_different_times() -> None:
    quotas, quota = Quotas(spread=iter((0.0, 0.5, 1.0)).__next__), Quota(requests_per_minute=1)
    quotas.enter("acme", quota, ONE, 0)
    told = []
    for _ in range(3):
        with pytest.raises(OverQuota) as refused:
            quotas.enter("acme", quota, ONE, 0)
        told.append(refused.value.retry_after_seconds)
    assert told == [60, 75, 90], "never too early"


def test_tenants_that_use_nothing_are_forgotten() -> None:
    quotas, quota = Quotas(), Quota(tokens_per_minute=100)
    for number in range(3 * MAX_TENANTS):
        quotas.leave(quotas.enter(f"t{number}", quota, ONE, number), 1, 1, number)
    assert len(quotas._uses) <= MAX_TENANTS + 1
    busy = Quotas()
    for number in range(2 * MAX_TENANTS):
        busy.enter(f"t{number}", quota, ONE, 0)
    assert len(busy._uses) == 2 * MAX_TENANTS, "but none that runs"


@pytest.mark.parametrize(
    ("demand", "quota", "param"),
    [
        (Demand(1, 8, 1, 1, 1), Quota(), None),
        (Demand(1, 21, 1, 1, 1), Quota(), "n"),
        (Demand(5, 4, 1, 1, 1), Quota(), None),
        (Demand(6, 4, 1, 1, 1), Quota(), "prompt"),
        (Demand(1, 3, 1, 1, 1), Quota(choices=2), "n"),
        (Demand(3, 1, 1, 1, 1), Quota(choices=2), "prompt"),
    ],
)
def test_choices_are_limited(demand: Demand, quota: Quota, param: str | None) -> None:
    if param is None:
        limit_choices(demand, quota, max_choices=20)
        return
    with pytest.raises(InvalidRequest) as refused:
        limit_choices(demand, quota, max_choices=20)
    assert refused.value.param == param


def test_choices_share_the_longest_answer() -> None:
    request = SimpleNamespace(max_tokens=None)
    limit_answer(request, 100, choices=3)
    assert request.max_tokens == 33
    with pytest.raises(InvalidRequest, match="3 answers share it"):
        limit_answer(SimpleNamespace(max_tokens=34), 100, choices=3)
    with pytest.raises(InvalidRequest, match="n may be at most 2"):
        limit_answer(SimpleNamespace(max_tokens=1), 2, choices=3)


def test_a_length_that_is_only_the_apis_default_is_shortened() -> None:
    class Completion(BaseModel):
        max_tokens: int | None = 16

    request = Completion()
    limit_answer(request, 9)
    assert request.max_tokens == 9


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"max_tokens": None}, {"max_tokens": 9}),
        ({"max_tokens": 4}, {"max_tokens": 4}),
        (
            {"max_completion_tokens": None, "max_tokens": None},
            {"max_completion_tokens": 9, "max_tokens": None},
        ),
        (
            {"max_completion_tokens": None, "max_tokens": 4},
            {"max_completion_tokens": None, "max_tokens": 4},
        ),
        ({"max_output_tokens": None}, {"max_output_tokens": 9}),
        ({}, {}),
        ({"max_output_tokens": 10}, None),
        ({"max_completion_tokens": 4, "max_tokens": 1 << 80}, None),
    ],
)
def test_the_longest_answer(
    given: dict[str, int | None], expected: dict[str, int | None] | None
) -> None:
    request = SimpleNamespace(**given)
    limit_answer(request, None)
    assert vars(request) == given
    if expected is None:
        with pytest.raises(InvalidRequest, match="at most 9"):
            limit_answer(request, 9)
    else:
        limit_answer(request, 9)
        assert vars(request) == expected
