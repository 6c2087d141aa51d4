"""The way to a dedicated server, and from there to the shared ones, through the real proxies."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest

from tests.deploy.proxies import Proxy, start_envoy, start_haproxy
from tests.deploy.stub_server import StubServer

NAMES = ("hot", "acme/hot")
CLIENT = httpx.Client()
START_SECONDS = 30


@pytest.fixture(scope="module")
def servers() -> Iterator[list[StubServer]]:
    servers = [StubServer(name) for name in ("one", "two", "dedicated")]
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture(scope="module", params=["envoy", "haproxy"])
def proxy(
    request: pytest.FixtureRequest,
    servers: list[StubServer],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Proxy]:
    start = {"envoy": start_envoy, "haproxy": start_haproxy}[request.param]
    folder = tmp_path_factory.mktemp("proxy")
    proxy = start(folder, servers[:2], dedicated=servers[2], names=" ".join(NAMES))
    yield proxy
    proxy.kill()


def ask(proxy: Proxy, model: str) -> str:
    """Who answered; empty where nobody did."""
    try:
        answer = CLIENT.post(f"{proxy.url}/v1/completions", json={"model": model}, timeout=30)
    except httpx.TransportError:
        return ""
    return str(answer.json()["server"]) if answer.status_code == 200 else ""


def test_an_adapter_goes_to_its_server_and_falls_back_to_the_shared_ones(
    proxy: Proxy, servers: list[StubServer]
) -> None:
    dedicated = servers[2]
    deadline = time.monotonic() + START_SECONDS
    while ask(proxy, "hot") != "dedicated":
        assert time.monotonic() < deadline, "the proxy doesn't reach the dedicated server"
        time.sleep(0.2)
    for name in NAMES:
        assert {ask(proxy, f"{name}{selector}") for selector in ("", "@3", "@live")} == {
            "dedicated"
        }
    others = {ask(proxy, f"adapter{i}") for i in range(16)} | {ask(proxy, "base") for _ in range(4)}
    assert others == {"one", "two"}
    dedicated.has_another = True
    before = dedicated.num_asked
    assert ask(proxy, "hot") in ("one", "two"), "no client sees that the name moved on"
    assert dedicated.num_asked == before + 1
    dedicated.has_another = False
    assert ask(proxy, "hot") == "dedicated"
    dedicated.stop()
    assert {ask(proxy, "hot") for _ in range(8)} <= {"one", "two"}
    dedicated.start()
