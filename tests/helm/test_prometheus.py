"""A real Prometheus scrapes a server; every expression of the chart finds its metrics there.

The engine is a fake one, and vLLM's metrics are declared here as vLLM declares them.
`tests/real_engine/test_prometheus.py` asks the same of a real engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from shutil import copytree

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY, Counter, Gauge

from adapters_registry.registry import Registry
from server import metrics
from server.app import build_server
from server.process.http_server import HttpServer, http_config
from server.settings import Settings
from tests.helm.programs import Helm
from tests.helm.prometheus import Prometheus, expressions, metrics_of_vllm, names_in, prometheus
from tests.server.answers import CHAT
from tests.server.fake_engine import FakeEngine
from tests.tiny import AdapterFactory

REQUEST_SECONDS = 0.2


@pytest.fixture
def vllms_metrics(helm4: Helm) -> Iterator[None]:
    """Those of vLLM's metrics that the chart names."""
    used = set().union(*map(names_in, expressions(helm4)))
    declared = metrics_of_vllm()
    made: list[Counter | Gauge] = []
    for name in sorted(name for name in used if name.startswith("vllm:")):
        bare = name.removesuffix("_total")
        assert bare in declared, f"vLLM has no {bare}"
        kind = Counter if name.endswith("_total") else Gauge
        metric = kind(bare, "As vLLM declares it.", ["model_name", "engine"])
        metric.labels("base", "0").inc()
        made.append(metric)
    yield
    for metric in made:
        REGISTRY.unregister(metric)


@asynccontextmanager
async def listening(app: FastAPI) -> AsyncIterator[str]:
    """Serve the app on a free port, as the server's process does; yield `host:port`."""
    server = HttpServer(http_config(app, host="127.0.0.1", port=0), write_stall_seconds=30.0)
    running = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(30):
            while not server.started:
                await asyncio.sleep(0.01)
        host, port = server.servers[0].sockets[0].getsockname()
        yield f"{host}:{port}"
    finally:
        server.should_exit = True
        await running


@pytest.mark.usefixtures("vllms_metrics")
async def test_every_expression_is_about_series_that_a_server_has(
    helm4: Helm, registry: Registry, make_adapter: AdapterFactory, tmp_path: Path
) -> None:
    engine = FakeEngine()
    settings = Settings(data_dir=tmp_path, max_loras=4, request_seconds=REQUEST_SECONDS)
    server = build_server(settings, registry, engine)
    stage = partial(copytree, make_adapter(), dirs_exist_ok=True)
    version, _ = registry.register("default", "home", "test", stage)
    registry.accept(version, registry.check_files(version))
    metrics.ENGINE_STARTS.inc(0)
    key = server.services.keys.create("default", ["inference"])
    headers = {"authorization": f"Bearer {key}"}
    async with (
        listening(server.app) as address,
        httpx.AsyncClient(base_url=f"http://{address}", headers=headers, timeout=30) as client,
    ):
        for body in ({"model": "home"}, {"model": "base"}, {"model": "home", "stream": True}):
            response = await client.post(CHAT, json=body)
            assert response.status_code == 200, response.text
        assert "request_timeout" in response.text, "it was ended early"
        await asyncio.to_thread(_try_all, list(expressions(helm4)), address)


def _try_all(asked: list[str], address: str) -> None:
    with prometheus(address) as running:
        running.wait_for_scrapes()
        known = running.names()
        for expression in asked:
            running.query(expression)
            assert names_in(expression) <= known, expression
        _check_results(running)


def _check_results(running: Prometheus) -> None:
    """Expressions without a condition give series: their labels are those of the server."""
    for expression in (
        'sum by (code) (rate(loraplex_requests_total{service=~".*"}[5m]))',
        "sum by (reason) (loraplex_waiting)",
        'max by (state) (loraplex_registry_versions{service=~".*"})',
    ):
        assert running.query(expression), expression
    assert not running.query("absent(loraplex_engine_starts_total)")
    assert not running.query('loraplex_registry_versions{state="incompatible"} > 0')
