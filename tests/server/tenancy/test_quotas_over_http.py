"""What clients see of their tenants' quotas."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import update

from adapters_registry.content.origin import Origin
from adapters_registry.records.tables import Version, now
from adapters_registry.records.tenants import Quota, create_tenant, set_quota
from adapters_registry.registry import Registry
from server.auth import Keys
from tests.server.answers import CHAT, assert_error, files_of
from tests.server.fake_engine import INPUT_TOKENS, OUTPUT_TOKENS, FakeEngine
from tests.tiny import AdapterFactory

COST = INPUT_TOKENS + OUTPUT_TOKENS


class Clock:
    """A clock that stands still until the test moves it."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


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
    assert 30 <= int(refused.headers["retry-after"]) <= 45
    assert refused.headers["x-ratelimit-reset-requests"] == "60.000s"
    assert (await client.post(CHAT, json={"model": "base"})).status_code == 200
    clock.now += 30
    assert (await acme.post(CHAT, json={"model": "base"})).status_code == 200


async def test_tokens_are_reserved_and_settled(
    acme: httpx.AsyncClient, client: httpx.AsyncClient, engine: FakeEngine, clock: Clock
) -> None:
    await client.put("/admin/tenants/acme/quota", json={"tokens_per_minute": 2 * COST})
    stream = {"model": "base", "stream": True, "max_tokens": 2 * COST}
    running = asyncio.create_task(acme.post(CHAT, json=stream))
    await asyncio.sleep(0.1)
    refused = await acme.post(CHAT, json={"model": "base"})
    assert_error(refused, 429, "rate_limit_exceeded")
    assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
    engine.stream_may_end.set()
    await running
    body = {"model": "base", "max_tokens": OUTPUT_TOKENS}
    answer = await acme.post(CHAT, json=body)
    left = 2 * COST - (INPUT_TOKENS + 2) - COST
    assert answer.status_code == 200, "the stream took two tokens and its prompt"
    clock.now += 1
    refused = await acme.post(CHAT, json={"model": "base", "max_tokens": 2 * COST})
    assert int(refused.headers["x-ratelimit-remaining-tokens"]) == left + 1
    never = await acme.post(CHAT, json={"model": "base", "max_tokens": 2 * COST + 1})
    assert assert_error(never, 429, "rate_limit_exceeded")["param"] == "max_tokens"
    assert never.headers["x-should-retry"] == "false"


async def test_choices_over_http(acme: httpx.AsyncClient, client: httpx.AsyncClient) -> None:
    await client.put("/admin/tenants/acme/quota", json={"choices": 1})
    response = await acme.post(CHAT, json={"model": "base", "n": 2})
    assert assert_error(response, 400, "invalid_request")["param"] == "n"
    assert (await client.post(CHAT, json={"model": "base", "n": 2})).status_code == 200
    response = await client.post(CHAT, json={"model": "base", "n": 129})
    assert assert_error(response, 400, "invalid_request")["message"] == "n may be at most 128"


async def test_a_prompt_that_cannot_fit_is_refused_before_it_is_tokenised(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.longest_prompt_characters = 100
    messages = [{"content": "x" * 60}, {"content": "x" * 41}]
    refused = await client.post(CHAT, json={"model": "base", "messages": messages})
    assert assert_error(refused, 400, "context_length_exceeded")["param"] == "messages"
    shorter = await client.post(CHAT, json={"model": "base", "messages": messages[:1]})
    assert shorter.status_code == 200


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


async def test_versions_and_registrations(
    acme: httpx.AsyncClient, registry: Registry, make_adapter: AdapterFactory
) -> None:
    async def register(seed: int, **recipe: object) -> httpx.Response:
        files = files_of(make_adapter(seed=seed, **recipe))
        return await acme.post("/admin/adapters?wait=true", data={"name": "one"}, files=files)

    registry.apply(set_quota, "acme", Quota(versions=2))
    for seed in (1, 2):
        assert (await register(seed)).status_code == 201
    assert_error(await register(3), 429, "insufficient_quota")
    await acme.delete("/admin/adapters/acme/one/versions/2")
    assert (await register(3)).status_code == 201
    registry.apply(set_quota, "acme", Quota(registrations_per_minute=5))
    assert (await register(4, rank=9)).status_code == 422
    assert (await register(5)).status_code == 201
    refused = await register(6)
    assert "5 versions a minute" in str(assert_error(refused, 429, "insufficient_quota")["message"])
    with registry.session() as session:
        hour_ago = now() - timedelta(hours=1)
        session.execute(update(Version).values(created_at=hour_ago))
    assert (await register(6)).status_code == 201


async def test_over_its_quota_a_tenant_leaves_no_byte(
    acme: httpx.AsyncClient, registry: Registry, make_adapter: AdapterFactory, s3: str
) -> None:
    """Neither on the disk nor in the bucket, whichever quota it is and however it is sent."""
    registry.content.origin = Origin(s3)

    async def register(seed: int, *, chunked: bool = False) -> httpx.Response:
        request = acme.build_request(
            "POST", "/admin/adapters", data={"name": "one"}, files=files_of(make_adapter(seed=seed))
        )
        body = request.read()
        headers = {"content-type": request.headers["content-type"]}

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(body), 1000):
                yield body[start : start + 1000]

        content = pieces() if chunked else body
        return await acme.post("/admin/adapters", content=content, headers=headers)

    assert (await register(0)).status_code == 202
    kept = _files_below(registry.content.root), registry.content.origin.sizes()
    assert kept[0]
    assert kept[1]
    for quota in (
        Quota(adapter_bytes=1),
        Quota(versions=1),
        Quota(registrations_per_minute=1),
        Quota(adapter_bytes=registry.get_version("acme", "one", 1).size_bytes + 1),
    ):
        registry.apply(set_quota, "acme", quota)
        for chunked in (False, True):
            assert_error(await register(1, chunked=chunked), 429, "insufficient_quota")
            assert (_files_below(registry.content.root), registry.content.origin.sizes()) == kept


def _files_below(folder: Path) -> dict[str, int]:
    return {str(file): file.stat().st_size for file in folder.rglob("*") if file.is_file()}


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
    registry.apply(set_quota, "acme", Quota(adapter_bytes=1))
    assert (await register("one", 2)).status_code == 200, "nor where the quota is used up"
    assert_error(await register("one", 3), 429, "insufficient_quota")
    registry.apply(set_quota, "acme", Quota(adapters=1, adapter_bytes=2 * size_bytes + 100))
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
        {"choices": 0},
        {"surplus": 1},
        [],
    ],
)
async def test_bad_quotas(client: httpx.AsyncClient, quota: object) -> None:
    response = await client.put("/admin/tenants/default/quota", json=quota)
    assert_error(response, 400, "invalid_request")
    assert_error(await client.put("/admin/tenants/none/quota", json={}), 404, "not_found")
