"""Quotas: the arithmetic by plain calls, and what clients see of it."""

import asyncio
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from adapters_registry.records.tenants import Quota, create_tenant, set_quota
from adapters_registry.registry import Registry
from server.api import inference
from server.auth import Keys
from server.errors import InvalidRequest, OverQuota
from server.tenancy.quotas import MINUTE_SECONDS, Quotas, Rate, limit_answer
from tests.server.answers import CHAT, assert_error, files_of
from tests.server.fake_engine import INPUT_TOKENS, OUTPUT_TOKENS, FakeEngine
from tests.tiny import AdapterFactory

COST = INPUT_TOKENS + OUTPUT_TOKENS


# --- rates ---


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
    quotas, quota = Quotas(), Quota(requests_per_minute=1, concurrent_requests=1)
    quotas.enter("acme", quota, 0)
    for _ in range(3):
        with pytest.raises(OverQuota, match="at a time"):
            quotas.enter("acme", quota, 0)
    quotas.leave("acme", quota, 5, 0)
    with pytest.raises(OverQuota, match="1 requests a minute") as refused:
        quotas.enter("acme", quota, 0)
    assert refused.value.retry_after_seconds == 60
    quotas.enter("other", quota, 0)
    quotas.enter("acme", quota, 60)


def test_without_a_quota_nothing_is_limited() -> None:
    quotas = Quotas()
    for _ in range(10_000):
        quotas.enter("acme", Quota(), 0)
    assert quotas.headers("acme", Quota(), 0) == {}


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


# --- over HTTP ---


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(inference, "time", clock)
    return clock


@pytest.fixture
def acme(app: FastAPI, registry: Registry, keys: Keys) -> httpx.AsyncClient:
    registry.apply(create_tenant, "acme")
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://x",
        headers={"Authorization": f"Bearer {keys.create('acme', ['inference', 'adapters'])}"},
    )


async def test_requests_a_minute(
    acme: httpx.AsyncClient, client: httpx.AsyncClient, clock: Clock
) -> None:
    quota = {"requests_per_minute": 2}
    answer = await client.put("/admin/tenants/acme/quota", json=quota)
    assert answer.json()["quota"]["requests_per_minute"] == 2
    left = []
    for _ in range(2):
        response = await acme.post(CHAT, json={"model": "base"})
        left.append(response.headers["x-ratelimit-remaining-requests"])
        assert response.headers["x-ratelimit-limit-requests"] == "2"
    assert left == ["1", "0"]
    refused = await acme.post(CHAT, json={"model": "base"})
    assert_error(refused, 429, "rate_limit_exceeded")
    assert refused.headers["retry-after"] == "30"
    assert refused.headers["x-ratelimit-reset-requests"] == "60.000s"
    assert (await client.post(CHAT, json={"model": "base"})).status_code == 200
    clock.now += 30
    assert (await acme.post(CHAT, json={"model": "base"})).status_code == 200


async def test_tokens_are_settled_after_the_answer(
    acme: httpx.AsyncClient, client: httpx.AsyncClient, clock: Clock
) -> None:
    await client.put("/admin/tenants/acme/quota", json={"tokens_per_minute": COST})
    first = await acme.post(CHAT, json={"model": "base", "max_tokens": 2 * COST - INPUT_TOKENS})
    assert first.status_code == 200
    refused = await acme.post(CHAT, json={"model": "base"})
    assert_error(refused, 429, "rate_limit_exceeded")
    assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
    assert int(refused.headers["retry-after"]) == 62  # the debt, and one token
    clock.now += 62
    assert (await acme.post(CHAT, json={"model": "base"})).status_code == 200


async def test_requests_at_a_time(
    acme: httpx.AsyncClient, client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await client.put("/admin/tenants/acme/quota", json={"concurrent_requests": 1})
    stream = asyncio.create_task(acme.post(CHAT, json={"model": "base", "stream": True}))
    await asyncio.sleep(0.1)
    refused = await acme.post(CHAT, json={"model": "base"})
    assert_error(refused, 429, "rate_limit_exceeded")
    engine.stream_may_end.set()
    await stream
    assert (await acme.post(CHAT, json={"model": "base"})).status_code == 200


async def test_the_longest_answer_over_http(
    acme: httpx.AsyncClient, client: httpx.AsyncClient
) -> None:
    await client.put("/admin/tenants/acme/quota", json={"max_tokens": 100})
    response = await acme.post(CHAT, json={"model": "base", "max_tokens": 101})
    assert assert_error(response, 400, "invalid_request")["param"] == "max_tokens"
    assert (await acme.post(CHAT, json={"model": "base", "max_tokens": 100})).status_code == 200


async def test_adapters_and_their_bytes(
    acme: httpx.AsyncClient,
    client: httpx.AsyncClient,
    registry: Registry,
    make_adapter: AdapterFactory,
) -> None:
    async def register(name: str, seed: int) -> httpx.Response:
        files = files_of(make_adapter(seed=seed))
        return await acme.post("/admin/adapters?wait=true", data={"name": name}, files=files)

    assert (await register("one", 1)).status_code == 201
    size_bytes = registry.get_version("acme", "one", 1).size_bytes
    registry.apply(set_quota, "acme", Quota(adapters=1, adapter_bytes=2 * size_bytes + 100))
    refused = await register("two", 2)
    assert_error(refused, 429, "insufficient_quota")
    assert refused.headers["x-should-retry"] == "false"
    assert (await register("one", 2)).status_code == 201
    assert_error(await register("one", 3), 429, "insufficient_quota")
    assert (await register("one", 2)).status_code == 200, "nothing new"
    await acme.delete("/admin/adapters/acme/one/versions/2")
    assert (await register("one", 3)).status_code == 201
    await acme.delete("/admin/adapters/acme/one?force=true")
    assert (await register("two", 2)).status_code == 201


@pytest.mark.parametrize(
    "quota",
    [
        {"requests_per_minute": 0},
        {"tokens_per_minute": -1},
        {"concurrent_requests": 1.5},
        {"max_tokens": "many"},
        {"adapters": -1},
        {"adapter_bytes": 1 << 60},
        {"surplus": 1},
        [],
    ],
)
async def test_bad_quotas(client: httpx.AsyncClient, quota: object) -> None:
    response = await client.put("/admin/tenants/default/quota", json=quota)
    assert_error(response, 400, "invalid_request")
    assert_error(await client.put("/admin/tenants/none/quota", json={}), 404, "not_found")
