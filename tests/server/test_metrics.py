"""What a scrape says of the server, and that it stays bounded and discreet."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event

from adapters_registry.records.catalog import VersionRecord
from adapters_registry.registry import Registry
from server.api.metrics_page import MetricsPage
from server.app import Server, build_server
from server.auth import Keys
from server.metrics import UNUSED_SECONDS, CappedLabels
from server.residency.leases import Leases
from server.residency.metrics import ResidencyMetrics
from server.residency.states import Wait
from server.settings import Settings
from server.tenancy.timing import Timing
from tests.server.answers import CHAT, assert_error
from tests.server.fake_engine import FakeEngine

TIMED = ("tenant", "adapter", "tier")
EVICTED = "loraplex_evictions_total"
LABELS = {
    "requests": ("tenant", "adapter", "endpoint", "code"),
    "time_to_first_token_seconds": TIMED,
    "inter_token_seconds": TIMED,
    "request_seconds": TIMED,
    "tokens": ("tenant", "adapter", "direction"),
    "queue_seconds": ("tenant", "reason"),
    "adapter_load_seconds": ("from_tier", "outcome"),
    "adapter_resident": ("adapter", "version", "tier"),
    "evictions": ("tier", "reason"),
    "leases": ("adapter",),
    "tier_bytes": ("tier",),
    "registry_versions": ("state",),
    "waiting": ("reason",),
}
"""By name, without prefix and without `_total`."""


def test_labels_are_capped() -> None:
    label = CappedLabels(2, ("adapter",))
    assert [label(name) for name in ("a", "b", "c", "a")] == ["a", "b", "other", "a"]


def test_labels_that_go_together_are_capped_together() -> None:
    labels = CappedLabels(1, ("tenant", "adapter"))
    assert labels.of("a", "b") == ("a", "b")
    assert labels.of("a", "c") == ("other", "other")


def test_a_label_that_is_not_used_any_more_gives_its_place_and_its_series_away() -> None:
    now = [0.0]
    counter = Counter("capped", "A test's.", ["adapter", "code"], registry=CollectorRegistry())
    label = CappedLabels(2, ("adapter",), (counter,), lambda: now[0])
    for name in ("old", "used"):
        counter.labels(label(name), "200").inc()
    now[0] = UNUSED_SECONDS
    assert label("used") == "used"
    assert label("new") == "new"
    counter.labels("new", "200").inc()
    assert label("newer") == "other", "those that are left are in use"
    series = {sample.labels["adapter"] for metric in counter.collect() for sample in metric.samples}
    assert series == {"used", "new"}


async def test_every_metric_of_ours_is_scraped(
    client: httpx.AsyncClient, leases: Leases, home: VersionRecord
) -> None:
    def dismissed() -> float:
        return REGISTRY.get_sample_value(EVICTED, {"tier": "host", "reason": "dismissed"}) or 0

    for model in ("home", "home", "base"):
        await client.post(CHAT, json={"model": model})
    before = dismissed()
    await leases.drain(home)
    assert dismissed() == before + 1
    await client.post(CHAT, json={"model": "home"})
    text = (await client.get("/metrics")).text
    families = {f.name: f for f in text_string_to_metric_families(text)}
    labels = {
        name: {frozenset(s.labels) - {"le"} for s in families[f"loraplex_{name}"].samples}
        for name in LABELS
    }
    assert labels == {name: {frozenset(given)} for name, given in LABELS.items()}
    first_tokens = families["loraplex_time_to_first_token_seconds"].samples
    ours = [s for s in first_tokens if s.name.endswith("_count")]
    tiers = {(s.labels["adapter"], s.labels["tier"]) for s in ours if s.value}
    assert {("default/home", "disk"), ("default/home", "slot"), ("base", "")} <= tiers
    assert "loraplex_registry_stale_seconds" in families


SEEN_FROM_THE_START = {
    "waiting": ("slot", "load", "prompt", "share", "engine"),
    "authentication_failures": ("missing", "unknown", "revoked", "expired", "scope"),
}


async def test_series_that_alerts_and_autoscalers_need_are_there_before_anything_happens(
    client: httpx.AsyncClient,
) -> None:
    """An increase from no value at all to the first failure is none, for Prometheus."""
    text = (await client.get("/metrics")).text
    for name, reasons in SEEN_FROM_THE_START.items():
        for reason in reasons:
            assert re.search(rf'^loraplex_{name}(_total)?{{reason="{reason}"}}', text, re.MULTILINE)
    assert 'load_seconds_count{from_tier="origin",outcome="failed"}' in text
    assert 'loraplex_evictions_total{reason="retired",tier="host"}' in text


async def test_who_waits_is_counted_once_wherever_it_waits(
    server: Server, client: httpx.AsyncClient, home: VersionRecord, engine: FakeEngine
) -> None:
    waiting = server.services.waiting
    assert waiting.now() == dict.fromkeys(Wait, 0)
    in_vllm = Gauge("vllm:num_requests_waiting", "As vLLM declares it.", ["model_name", "engine"])
    try:
        in_vllm.labels("base", "0").set(3)
        body = {"model": "home", "stream": True}
        asked = [
            asyncio.create_task(client.post(CHAT, json=body)) for _ in range(engine.max_running + 2)
        ]
        async with asyncio.timeout(30):
            while waiting.now()[Wait.PROMPT] < 2:
                await asyncio.sleep(0.01)
        text = (await client.get("/metrics")).text
        assert 'loraplex_waiting{reason="engine"} 3.0' in text
        assert "loraplex_queued_requests 5.0" in text
    finally:
        REGISTRY.unregister(in_vllm)
    engine.stream_may_end.set()
    await asyncio.gather(*asked)
    assert waiting.now() == dict.fromkeys(Wait, 0)


def test_routers_are_told_where_adapters_are_in_the_newer_contract_too() -> None:
    def row(model: str, tier: str, state: str = "ready", *, pinned: bool = False) -> dict[str, Any]:
        return {"model": model, "state": state, "tier": tier, "size_bytes": 1, "pinned": pinned}

    rows = [
        row("acme/bot@1", "host"),
        row("acme/bot@2", "slot"),
        row("acme/idle@1", "host", pinned=True),
        row("acme/coming@1", "disk", "loading"),
    ]
    families = {f.name: f for f in ResidencyMetrics(rows, 4, 0, "base").collect()}
    loaded = families["vllm:lora_adapter_loaded"].samples
    assert {tuple(s.labels.values()) for s in loaded if s.value == 1} == {
        ("acme/bot", "gpu", "false"),
        ("bot", "gpu", "false"),
        ("acme/idle", "cpu", "true"),
        ("idle", "cpu", "true"),
    }
    assert len(loaded) == 4, "a router takes one series for each name"
    for name, value in (("num_gpu_loaded_lora_adapters", 1), ("max_gpu_lora_adapters", 4)):
        (sample,) = families[f"vllm:{name}"].samples
        assert (sample.labels, sample.value) == ({"model_name": "base"}, value)


async def test_metrics_hold_no_key_and_no_prompt(
    client: httpx.AsyncClient, home: VersionRecord
) -> None:
    body = {"model": "home", "messages": [{"role": "user", "content": "a secret"}]}
    await client.post(CHAT, json=body)
    text = (await client.get("/metrics")).text
    assert "a secret" not in text
    assert client.headers["Authorization"].removeprefix("Bearer ") not in text


def page_of(server: Server, clock: Callable[[], float]) -> MetricsPage:
    services = server.services
    return MetricsPage(
        services.registry, services.leases, services.waiting, 4, base_name="base", clock=clock
    )


async def test_a_page_is_made_once_a_second_however_many_scrape(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, seconds = [], 0.0
    make = MetricsPage._make

    async def counted(self: MetricsPage, encode: Callable[[CollectorRegistry], bytes]) -> bytes:
        made.append(seconds)
        await asyncio.sleep(0)
        return await make(self, encode)

    monkeypatch.setattr(MetricsPage, "_make", counted)
    page = page_of(server, lambda: seconds)
    texts = await asyncio.gather(*(page.page("") for _ in range(20)))
    assert len(set(texts)) == 1
    seconds = 0.9
    await page.page("")
    assert made == [0.0]
    seconds = 1.0
    await page.page("")
    assert made == [0.0, 1.0]


async def test_openmetrics_is_one_document_with_exemplars(
    client: httpx.AsyncClient, home: VersionRecord
) -> None:
    times = Timing(0.0, "default", "default/home", "slot", lambda: 0.3, trace_id="ab" * 16)
    times.tokens(1, None)
    times.end()
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}
    response = await client.get("/metrics", headers=accept)
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    families = {f.name: f for f in openmetrics.text_string_to_metric_families(response.text)}  # type: ignore[no-untyped-call]
    assert "loraplex_registry_versions" in families
    for name in ("loraplex_time_to_first_token_seconds", "loraplex_request_seconds"):
        exemplars = [each.exemplar for each in families[name].samples if each.exemplar]
        assert {"trace_id": "ab" * 16} in [each.labels for each in exemplars]
    assert "# EOF" not in (await client.get("/metrics")).text


async def test_prometheus_gets_the_names_that_the_chart_asks_for(client: httpx.AsyncClient) -> None:
    """Prometheus accepts OpenMetrics first, in which a library may write `vllm_` for `vllm:`."""
    accept = (
        "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;"
        "q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    )
    for headers in ({"accept": accept}, {"accept": "text/plain"}, {}):
        text = (await client.get("/metrics", headers=headers)).text
        assert re.search(r"^vllm:lora_requests_info{", text, re.MULTILINE)
        assert "vllm_" not in text


async def test_a_scrape_asks_no_database(
    client: httpx.AsyncClient, home: VersionRecord, registry: Registry
) -> None:
    asked: list[object] = []
    event.listen(registry.engine, "before_cursor_execute", lambda *query: asked.append(query[2]))
    text = (await client.get("/metrics")).text
    assert asked == []
    assert 'loraplex_registry_versions{state="ready"} 1.0' in text
    assert 'loraplex_registry_versions{state="rejected"} 0.0' in text


TOKEN = "a-token-for-scrapers"


@pytest.fixture
def operations(
    registry: Registry, engine: FakeEngine, leases: Leases, tmp_path: Path
) -> httpx.AsyncClient:
    settings = Settings(data_dir=tmp_path, operations_port=0, scrape_token=TOKEN)
    app = build_server(settings, registry, engine, leases=leases).operations_app
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://operations")


async def test_a_scrape_token(operations: httpx.AsyncClient) -> None:
    for header in ("", "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer ä"):
        headers = [(b"authorization", header.encode())] if header else []
        response = await operations.get("/metrics", headers=headers)
        assert_error(response, 401, "invalid_api_key")
        assert "loraplex_" not in response.text.replace("LORAPLEX_", "")
    response = await operations.get("/metrics", headers={"authorization": f"Bearer {TOKEN}"})
    assert "loraplex_registry_versions" in response.text


async def test_operations_have_a_port_of_their_own(
    operations: httpx.AsyncClient,
    registry: Registry,
    keys: Keys,
    engine: FakeEngine,
    leases: Leases,
    tmp_path: Path,
) -> None:
    assert (await operations.get("/livez")).status_code == 200
    assert (await operations.get("/readyz")).status_code == 200
    for path in ("/v1/models", "/admin/adapters", "/docs", "/openapi.json"):
        assert (await operations.get(path)).status_code == 404
    settings = Settings(data_dir=tmp_path, operations_port=0)
    main = build_server(settings, registry, engine, keys=keys, leases=leases).app
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(main), base_url="http://loraplex"
    ) as client:
        assert (await client.get("/metrics")).status_code == 404
        assert (await client.get("/livez")).status_code == 200
