"""Adapters as clients of LoRAX, SGLang and Ray name them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from adapters_registry.records.catalog import VersionRecord
from server.api.intake.dialects import name_model
from server.engine.interface import Endpoint
from server.errors import InvalidRequest
from tests.server.answers import CHAT, assert_error
from tests.server.fake_engine import Body, FakeEngine, parse


@pytest.fixture
def engine() -> FakeEngine:
    engine = FakeEngine()
    endpoint = Endpoint(Body, parse, engine._count, generates=False, needs_model=False)
    engine.endpoints = {**engine.endpoints, "/tokenize": endpoint}
    return engine


@pytest.mark.parametrize(
    ("named", "model"),
    [
        ({"adapter_id": "home"}, "home"),
        ({"adapter_id": "acme/home", "adapter_source": "local"}, "acme/home"),
        ({"adapter_id": "org/repo", "adapter_source": "hub"}, "hf://org/repo"),
        ({"adapter_id": "s3://bucket/x", "adapter_source": "s3"}, "s3://bucket/x"),
        ({"adapter_id": "bucket/x", "adapter_source": "s3", "api_token": "x"}, "s3://bucket/x"),
        ({"adapter_id": "__base_model__"}, "base"),
        ({"adapter_id": "", "adapter_source": ""}, "base"),
        ({"adapter_id": None, "lora_path": None}, "base"),
        ({"lora_path": "home"}, "home"),
        ({"adapter_source": "pbase"}, "base"),
        ({}, "base"),
    ],
)
def test_the_model_that_is_meant(named: dict[str, Any], model: str) -> None:
    body = {"model": "base", **named}
    name_model(body)
    assert body["model"] == model
    assert not body.keys() & {"adapter_id", "adapter_source", "lora_path"}


@pytest.mark.parametrize(
    ("named", "param"),
    [
        ({"adapter_id": 3}, "adapter_id"),
        ({"adapter_id": "x", "adapter_source": ["hub"]}, "adapter_source"),
        ({"adapter_id": "x", "adapter_source": "pbase"}, "adapter_source"),
        ({"lora_path": ["a", "b"]}, "lora_path"),
        ({"merged_adapters": {"ids": ["a", "b"]}}, "merged_adapters"),
    ],
)
def test_what_cannot_be_meant(named: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        name_model({"model": "base", **named})
    assert error.value.param == param


async def test_requests_in_other_servers_words(
    client: httpx.AsyncClient, home: VersionRecord
) -> None:
    bodies: tuple[dict[str, Any], ...] = (
        {"model": "base:home"},
        {"model": "base:default/home@1"},
        {"model": "base", "adapter_id": "home"},
        {"adapter_id": "home", "adapter_source": "local"},
        {"model": "base", "lora_path": "home"},
    )
    for body in bodies:
        answer = await client.post(CHAT, json=body)
        assert answer.json() == {"model": "default/home@1"}, body
    for model in ("other:home", "base:nothing", "base:", "home:base"):
        refused = await client.post(CHAT, json={"model": model})
        assert_error(refused, 404, "model_not_found")
    card = await client.get("/v1/models/base:home")
    assert card.json()["root"] == "default/home@1"


async def test_a_route_that_needs_no_model_means_the_base(
    client: httpx.AsyncClient, home: VersionRecord
) -> None:
    assert (await client.post("/tokenize", json={})).status_code == 200
    assert (await client.post("/tokenize", json={"model": "home"})).status_code == 200
    unknown = await client.post("/tokenize", json={"model": "acme/home"})
    assert_error(unknown, 404, "model_not_found")
    wrong: tuple[object, ...] = ("", 3, [])
    for model in wrong:
        assert_error(await client.post("/tokenize", json={"model": model}), 400, "invalid_request")
    assert_error(await client.post(CHAT, json={}), 400, "invalid_request")


async def test_tokenizing_wants_the_scope_of_inference(
    client: httpx.AsyncClient, keys: Any
) -> None:
    headers = {"Authorization": f"Bearer {keys.create('default', ['adapters'])}"}
    for path in ("/tokenize", "/detokenize"):
        refused = await client.post(path, json={}, headers=headers)
        assert_error(refused, 403, "insufficient_scope")
