"""The whole app on a fake engine: what every route answers, to whom, and in which shape."""

import asyncio
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY

from adapters_registry.records.catalog import VersionRecord
from adapters_registry.registry import Registry
from server.auth import Keys
from server.engine.interface import EngineState
from server.errors import SchemaTooComplex
from server.lifecycle import Lifecycle
from server.middleware.authentication import OPEN_PATHS
from server.residency.leases import Leases
from server.residency.states import FIRST_PAUSE_SECONDS
from tests.server.answers import CHAT, assert_error
from tests.server.fake_engine import FakeEngine

# --- inference ---


@pytest.mark.parametrize(
    ("model", "answered_by"),
    [
        ("base", "base"),
        ("home", "default/home@1"),
        ("default/home", "default/home@1"),
        ("home@1", "default/home@1"),
        ("home@live", "default/home@1"),
    ],
)
async def test_model_forms(
    client: httpx.AsyncClient, home: VersionRecord, model: str, answered_by: str
) -> None:
    response = await client.post(CHAT, json={"model": model})
    assert response.json() == {"model": answered_by}


async def test_headers_say_which_version_answered(
    client: httpx.AsyncClient, home: VersionRecord
) -> None:
    response = await client.post(CHAT, json={"model": f"home@sha256:{home.digest[:12]}"})
    assert response.headers["x-adapter-id"] == "default/home"
    assert response.headers["x-adapter-version"] == "1"
    assert response.headers["x-adapter-digest"] == f"sha256:{home.digest}"


@pytest.mark.parametrize(
    "model", ["nope", "other/home", "home@2", "home@canary", "home@" + "9" * 9999]
)
async def test_unknown_model(client: httpx.AsyncClient, home: VersionRecord, model: str) -> None:
    assert_error(await client.post(CHAT, json={"model": model}), 404, "model_not_found")


@pytest.mark.parametrize("body", [{}, {"model": None}, {"model": ""}])
async def test_no_model(client: httpx.AsyncClient, body: dict[str, object]) -> None:
    error = assert_error(await client.post(CHAT, json=body), 400, "invalid_request")
    assert error["param"] == "model"


async def test_bodies_that_cannot_be_read(client: httpx.AsyncClient) -> None:
    for content in (b"{", b"[1]", b""):
        response = await client.post(
            CHAT, content=content, headers={"content-type": "application/json"}
        )
        assert_error(response, 400, "invalid_request")


async def test_messages_errors_carry_anthropics_type_too(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/messages", json={"model": "nope"})
    assert_error(response, 404, "model_not_found")
    assert response.json()["type"] == "error"


async def test_a_stream_that_is_refused_has_not_begun(
    client: httpx.AsyncClient, engine: FakeEngine, home: VersionRecord, leases: Leases
) -> None:
    engine.refuses_streams = SchemaTooComplex("the grammar takes too long")
    response = await client.post(CHAT, json={"model": "home", "stream": True})
    assert_error(response, 400, "schema_too_complex")
    assert [row["leases"] for row in leases.snapshot()] == [0], "its slot is free again"


async def test_adapter_loads_once_for_many(
    client: httpx.AsyncClient, engine: FakeEngine, home: VersionRecord
) -> None:
    engine.load_seconds = 0.05
    responses = await asyncio.gather(*(client.post(CHAT, json={"model": "home"}) for _ in range(8)))
    assert {response.status_code for response in responses} == {200}
    assert engine.loads == ["default/home@1"]


async def test_a_restarted_engine_loads_again(
    client: httpx.AsyncClient, engine: FakeEngine, home: VersionRecord
) -> None:
    await client.post(CHAT, json={"model": "home"})
    engine.generation += 1
    await client.post(CHAT, json={"model": "home"})
    assert engine.loads == ["default/home@1"] * 2


async def test_a_failed_load_fails_its_own_requests_and_is_tried_again_after_a_pause(
    client: httpx.AsyncClient, engine: FakeEngine, home: VersionRecord
) -> None:
    engine.fails_to_load = {"default/home@1"}
    for _ in range(2):
        response = await client.post(CHAT, json={"model": "home"})
        assert_error(response, 503, "engine_unavailable")
        assert int(response.headers["retry-after"]) >= 1
    assert engine.loads == ["default/home@1"], "not tried again at once"
    assert (await client.post(CHAT, json={"model": "base"})).status_code == 200
    engine.fails_to_load = set()
    await asyncio.sleep(FIRST_PAUSE_SECONDS)
    assert (await client.post(CHAT, json={"model": "home"})).status_code == 200


async def test_engine_not_ready(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.state = EngineState.RESTARTING
    response = await client.post(CHAT, json={"model": "base"})
    assert_error(response, 503, "engine_unavailable")
    assert int(response.headers["retry-after"]) > 0


# --- listing ---


async def test_models_lists_base_and_adapters(
    client: httpx.AsyncClient, home: VersionRecord
) -> None:
    base, adapter = (await client.get("/v1/models")).json()["data"]
    assert base["id"] == "base"
    assert (adapter["id"], adapter["parent"]) == ("home", "base")
    assert adapter["adapter"]["version"] == 1
    assert adapter["adapter"]["aliases"] == ["live"]
    shown = await client.get("/v1/models/default/home@1")
    assert shown.json()["adapter"] == adapter["adapter"]
    assert_error(await client.get("/v1/models/nope"), 404, "model_not_found")


# --- keys ---


@pytest.mark.parametrize("path", ["/v1/models", "/admin/adapters", "/nowhere", "/v1/nowhere"])
@pytest.mark.parametrize("header", [None, "Bearer", "Bearer x", "Bearer lpx-a-b", "Basic eA=="])
async def test_no_valid_key(app: FastAPI, path: str, header: str | None) -> None:
    headers = {"Authorization": header} if header else {}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://x", headers=headers
    ) as stranger:
        response = await stranger.get(path)
        assert_error(response, 401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"


async def test_scope_and_tenant(
    client: httpx.AsyncClient, keys: Keys, registry: Registry, home: VersionRecord
) -> None:
    key = keys.create("default", ["inference"])
    client.headers = httpx.Headers({"x-api-key": key})
    assert (await client.post(CHAT, json={"model": "home"})).status_code == 200
    assert_error(await client.get("/admin/adapters"), 403, "insufficient_scope")


async def test_open_paths_need_no_key(app: FastAPI) -> None:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://x"
    ) as stranger:
        for path in sorted(OPEN_PATHS):
            assert (await stranger.get(path)).status_code == 200


# --- operations ---


async def test_readiness(
    client: httpx.AsyncClient, engine: FakeEngine, lifecycle: Lifecycle
) -> None:
    assert (await client.get("/readyz")).status_code == 200
    engine.state = EngineState.STARTING
    assert_error(await client.get("/readyz"), 503, "engine_unavailable")
    assert (await client.get("/livez")).status_code == 200
    engine.state = EngineState.READY
    lifecycle.leaving = True
    assert_error(await client.get("/readyz"), 503, "engine_unavailable")
    assert (await client.post(CHAT, json={"model": "base"})).status_code == 200
    lifecycle.draining = True
    assert_error(await client.get("/readyz"), 503, "engine_unavailable")
    assert_error(await client.post(CHAT, json={"model": "base"}), 503, "engine_unavailable")


async def test_balancers_may_probe_with_head(app: FastAPI, engine: FakeEngine) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as prober:
        for path in ("/livez", "/readyz"):
            answer = await prober.head(path)
            assert (answer.status_code, answer.content) == (200, b"")
        engine.state = EngineState.STARTING
        assert (await prober.head("/readyz")).status_code == 503


async def test_metrics_count_requests_by_adapter(
    client: httpx.AsyncClient, home: VersionRecord
) -> None:
    await client.post(CHAT, json={"model": "home"})
    text = (await client.get("/metrics")).text
    labels = f'adapter="default/home",code="200",endpoint="{CHAT}",tenant="default"'
    assert f"loraplex_requests_total{{{labels}}}" in text
    assert 'loraplex_registry_versions{state="ready"} 1.0' in text
    assert 'loraplex_adapter_resident{adapter="default/home",tier="slot",version="1"} 1.0' in text
    assert 'running_lora_adapters="default/home,home",waiting_lora_adapters=""}' in text


async def test_failures_inside_are_500_and_counted_so(
    client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble() -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(engine, "require_ready", stumble)
    response = await client.post(CHAT, json={"model": "base"})
    assert "secret" not in str(assert_error(response, 500, "internal_error"))
    labels = {"adapter": "", "code": "500", "endpoint": CHAT, "tenant": "default"}
    assert REGISTRY.get_sample_value("loraplex_requests_total", labels) == 1


async def test_unknown_route(client: httpx.AsyncClient) -> None:
    for path in ("/nowhere", "/v1/nowhere", "/invocations", "/tokenizer_info", "/v1/adapters"):
        assert_error(await client.get(path), 404, "not_found")
    assert_error(await client.delete("/v1/models"), 405, "invalid_request")


def test_every_route_is_documented(app: FastAPI) -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    for path, operations in app.openapi()["paths"].items():
        for method in operations:
            assert f"| `{method.upper()} {path}` |" in page, "run `make docs`"
