"""Bodies of inference requests, over HTTP: what is refused, when, and what it leaves behind."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.tenants import Quota, set_quota
from adapters_registry.registry import Registry
from server.api.intake.intake import LARGE_BODY_BYTES
from server.app import build_server
from server.auth import Keys
from server.engine.validation import fail_fast_validator
from server.lifecycle import Lifecycle
from server.residency.leases import Leases
from server.settings import Settings
from tests.server.answers import CHAT, assert_error
from tests.server.fake_engine import Body, FakeEngine

JSON = {"content-type": "application/json"}


class Chat(Body):
    messages: list[dict[str, str]]


@pytest.fixture
def engine() -> FakeEngine:
    engine = FakeEngine()
    parse = fail_fast_validator(Chat).validate_python
    engine.endpoints = {
        path: replace(endpoint, body=Chat, parse=parse)
        for path, endpoint in engine.endpoints.items()
    }
    return engine


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "home", "messages": [{"role": "user", "content": "hi"}]} | more


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": [{"role": 1}]}, "messages[0].role"),
        ({"messages": [{}] * 20_000}, "messages"),
        ({"max_tokens": 101}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"best_of": 2}, "best_of"),
        ({"background": True}, "background"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": "x" * 4097}, "stop"),
        ({"stop_sequences": ["x" * 4000] * 2}, "stop_sequences"),
        ({"bad_words": ["x" * 9000] * 2}, "bad_words"),
        ({"top_k": 10**30}, "top_k"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"user": "x" * 257}, "user"),
        ({"metadata": {"user_id": "x" * 257}}, "metadata.user_id"),
        ({"conversation": {"id": "x" * 257}}, "conversation"),
    ],
)
async def test_a_bad_body_for_a_cold_adapter_loads_nothing(
    client: httpx.AsyncClient,
    registry: Registry,
    engine: FakeEngine,
    home: VersionRecord,
    change: dict[str, Any],
    param: str,
) -> None:
    registry.apply(set_quota, "default", Quota(max_tokens=100, requests_per_minute=1))
    body = {key: value for key, value in chat(**change).items() if value is not None}
    response = await client.post(CHAT, json=body)
    assert assert_error(response, 400, "invalid_request")["param"] == param
    assert engine.loads == []
    assert (await client.post(CHAT, json=chat())).status_code == 200, "and no quota was used"
    assert engine.loads == ["default/home@1"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b'"a"',
        b'{"model": NaN}',
        b'{"temperature": 1e999}',
        b"\xff",
        b"[" * 100_000,
        b"{}" * 200_000,
    ],
    ids=lambda content: str(content[:10]),
)
async def test_what_is_no_json_object(client: httpx.AsyncClient, content: bytes) -> None:
    response = await client.post(CHAT, content=content, headers=JSON)
    assert_error(response, 400, "invalid_request")


async def test_other_media_types(client: httpx.AsyncClient, home: VersionRecord) -> None:
    content = json.dumps(chat()).encode()
    for media_type, status in {
        "application/json; charset=utf-8": 200,
        "application/vnd.api+json": 200,
        "application/x-www-form-urlencoded": 415,
        "text/plain": 415,
    }.items():
        response = await client.post(CHAT, content=content, headers={"content-type": media_type})
        assert response.status_code == status


async def test_large_bodies_are_understood_in_another_thread_and_as_well(
    client: httpx.AsyncClient, home: VersionRecord
) -> None:
    text = "x" * LARGE_BODY_BYTES
    messages = [{"role": "user", "content": text}]
    assert (await client.post(CHAT, json=chat(messages=messages))).status_code == 200
    bad = await client.post(CHAT, json=chat(messages=[*messages, {"role": 1}]))
    assert assert_error(bad, 400, "invalid_request")["param"] == "messages[1].role"


async def test_bodies_over_the_tenants_bytes_wait_outside(
    registry: Registry, keys: Keys, engine: FakeEngine, leases: Leases, lifecycle: Lifecycle
) -> None:
    settings = Settings(max_tenant_bodies_mib=8)
    app: FastAPI = build_server(settings, registry, engine, keys=keys, leases=leases).app
    key = keys.create("default", ["inference"])
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://loraplex",
        headers={"Authorization": f"Bearer {key}"},
    ) as client:
        large = chat(model="base", stream=True, user="a", padding="x" * (5 << 20))
        first = asyncio.create_task(client.post(CHAT, json=large))
        await asyncio.sleep(0.3)
        refused = await client.post(CHAT, json=large)
        assert_error(refused, 429, "rate_limit_exceeded")
        assert int(refused.headers["retry-after"]) >= 1
        assert (await client.post(CHAT, json=chat(model="base"))).status_code == 200
        engine.stream_may_end.set()
        assert (await first).status_code == 200
        assert (await client.post(CHAT, json=large)).status_code == 200


async def test_a_trailing_slash_is_no_redirect_to_where_the_client_says(
    client: httpx.AsyncClient,
) -> None:
    response = await client.post(CHAT + "/", json=chat(), headers={"host": "evil.example"})
    assert_error(response, 404, "not_found")
    assert "location" not in response.headers


async def test_errors_below_v1_messages_have_anthropics_types(
    client: httpx.AsyncClient, home: VersionRecord, engine: FakeEngine
) -> None:
    async def type_of(**more: Any) -> str:
        answer = (await client.post("/v1/messages", **more)).json()
        assert answer["type"] == "error"
        return str(answer["error"]["type"])

    assert await type_of(json={}) == "invalid_request_error"
    assert await type_of(json=chat(model="nobody/x")) == "not_found_error"
    assert await type_of(json=chat(), headers={"authorization": "Bearer x"}) == (
        "authentication_error"
    )
    engine.max_running = 0
    assert await type_of(content=b"x" * (9 << 20)) == "request_too_large"


async def test_counting_tokens_takes_no_slot_and_no_tokens_but_counts(
    client: httpx.AsyncClient, registry: Registry, engine: FakeEngine, home: VersionRecord
) -> None:
    path = "/v1/messages/count_tokens"
    registry.apply(set_quota, "default", Quota(requests_per_minute=2, tokens_per_minute=100))
    answer = await client.post(path, json=chat())
    assert answer.json() == {"input_tokens": 10}
    assert answer.headers["x-ratelimit-remaining-requests"] == "1"
    assert answer.headers["x-ratelimit-remaining-tokens"] == "100"
    assert answer.headers["x-adapter-version"] == "1"
    assert engine.loads == []
    assert_error(await client.post(path, json=chat(model="nope")), 404, "model_not_found")
    assert (await client.post(path, json=chat())).status_code == 200
    assert_error(await client.post(path, json=chat()), 429, "rate_limit_exceeded")
