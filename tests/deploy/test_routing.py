"""Routing by adapter: requests stick to a server, spill over, and survive the loss of one."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from tests.deploy.proxies import Proxy, start_envoy, start_haproxy
from tests.deploy.stub_server import StubServer

START_SECONDS = 30
NOTICE_SECONDS = 5
"""The default of LORAPLEX_NOTICE_SECONDS."""
CLIENT = httpx.Client()
PROXIES = {"envoy": start_envoy, "haproxy": start_haproxy}
COMPLETIONS = "/v1/completions"
ADAPTERS = [f"tenant{i}/adapter{i}" for i in range(24)]


@pytest.fixture(scope="module")
def both() -> Iterator[list[StubServer]]:
    servers = [StubServer("one"), StubServer("two")]
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture(scope="module", params=sorted(PROXIES))
def proxy(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    both: list[StubServer],
) -> Iterator[Proxy]:
    proxy = PROXIES[request.param](tmp_path_factory.mktemp("proxy"), both)
    yield proxy
    proxy.kill()


@pytest.fixture
def servers(proxy: Proxy, both: list[StubServer]) -> list[StubServer]:
    """Two that the proxy knows to be well."""
    for server in both:
        server.draining = server.leaving = server.overloaded = False
    deadline = time.monotonic() + START_SECONDS
    rounds_well = 0
    while rounds_well < 2:  # after the first a proxy may still take in what it has seen fail
        assert time.monotonic() < deadline, "the proxy doesn't reach both servers"
        found = {ask(proxy.url, "base") for _ in range(8)}
        rounds_well = rounds_well + 1 if found == {"one", "two"} else 0
        time.sleep(0.2)
    for server in both:
        server.num_asked = 0
    return both


@pytest.fixture
def url(proxy: Proxy, servers: list[StubServer]) -> str:
    return proxy.url


def ask(url: str, model: str, path: str = COMPLETIONS, **body: object) -> str:
    """Who answered; empty where nobody did."""
    try:
        answer = CLIENT.post(f"{url}{path}", json={"model": model, **body}, timeout=30)
    except httpx.TransportError:
        return ""
    return str(answer.json()["server"]) if answer.status_code == 200 else ""


async def ask_one_after_the_other(
    url: str, model: str, count: int, servers: list[StubServer]
) -> list[str]:
    """Who answers requests that are all open in the end; each comes when the last has arrived."""
    for server in servers:
        server.held.clear()
    asked: list[asyncio.Task[httpx.Response]] = []
    async with httpx.AsyncClient(limits=httpx.Limits(), timeout=60) as client, asyncio.timeout(60):
        for number in range(1, count + 1):
            request = client.post(f"{url}/v1/completions", json={"model": model})
            asked.append(asyncio.create_task(request))
            while sum(server.num_asked for server in servers) < number:
                await asyncio.sleep(0.005)
        for server in servers:
            server.held.set()
        return [answer.json()["server"] for answer in await asyncio.gather(*asked)]


def test_an_adapter_stays_on_its_server(url: str) -> None:
    homes = {adapter: ask(url, adapter) for adapter in ADAPTERS}
    assert set(homes.values()) == {"one", "two"}
    for again in range(5):
        for adapter, home in homes.items():
            model = (adapter, f"{adapter}@3", f"{adapter}@canary")[again % 3]
            assert ask(url, model) == home


def test_base_requests_go_round(url: str) -> None:
    assert {ask(url, "base") for _ in range(20)} == {"one", "two"}


def test_long_bodies_arrive_and_stick(url: str) -> None:
    home = ask(url, ADAPTERS[0])
    assert {ask(url, ADAPTERS[0], prompt="x" * 300_000) for _ in range(4)} == {home}


def test_bodies_that_are_no_json_arrive(url: str) -> None:
    for content in (b"{", b"[1]", b'{"model": 3}', b'{"model": "a\\r\\nb"}'):
        headers = {"content-type": "application/json"}
        answer = CLIENT.post(f"{url}/v1/completions", content=content, headers=headers)
        assert answer.status_code == 200
        assert answer.json()["num_bytes"] == len(content)


async def test_a_server_with_too_much_passes_requests_on(
    url: str, servers: list[StubServer]
) -> None:
    counts = Counter(await ask_one_after_the_other(url, ADAPTERS[0], 40, servers))
    assert set(counts) == {"one", "two"}
    assert max(counts.values()) <= 1.75 / 2 * 40 + 2, "175 % of the average"


def test_a_server_that_drains_costs_no_request(url: str, servers: list[StubServer]) -> None:
    servers[0].leaving = True
    ends = time.monotonic() + NOTICE_SECONDS
    while time.monotonic() < ends:
        assert ask(url, ADAPTERS[0])
        time.sleep(0.05)
    servers[0].draining = True
    assert {ask(url, adapter) for adapter in ADAPTERS * 2} == {"two"}


def test_a_server_that_refuses_at_once_is_passed_over_by_envoy(
    proxy: Proxy, servers: list[StubServer]
) -> None:
    """HAProxy cannot see the header that says so: its clients get the 503 until the check fails."""
    if proxy.name != "envoy":
        pytest.skip("only Envoy repeats by a header")
    servers[0].draining = True
    assert {ask(proxy.url, adapter) for adapter in ADAPTERS * 2} == {"two"}


def test_overload_is_not_repeated_on_other_servers(url: str, servers: list[StubServer]) -> None:
    for server in servers:
        server.overloaded = True
    answer = CLIENT.post(f"{url}{COMPLETIONS}", json={"model": ADAPTERS[0]})
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "slot_timeout"
    assert sum(server.num_asked for server in servers) == 1


def test_the_longest_bodies_arrive(url: str) -> None:
    body = {"model": ADAPTERS[0], "prompt": "x" * (8 * 1024 * 1024 - 200)}
    answer = CLIENT.post(f"{url}{COMPLETIONS}", json=body, timeout=30)
    assert answer.status_code == 200
    assert answer.json()["num_bytes"] > 8_000_000


def test_a_client_does_not_choose_its_address(url: str) -> None:
    headers = {"x-forwarded-for": "1.2.3.4"}
    answer = CLIENT.post(f"{url}{COMPLETIONS}", json={"model": "base"}, headers=headers)
    last = answer.json()["forwarded"][-1].split(",")[-1].strip()
    assert last not in ("", "1.2.3.4"), "the proxy's own view of who connected to it"


def test_a_server_that_is_gone_costs_no_request(url: str, servers: list[StubServer]) -> None:
    homes = {adapter: ask(url, adapter) for adapter in ADAPTERS}
    servers[0].stop()
    assert {ask(url, adapter) for adapter in ADAPTERS * 2} == {"two"}
    stayed = [adapter for adapter, home in homes.items() if home == "two"]
    assert {ask(url, adapter) for adapter in stayed} == {"two"}
    servers[0].start()


@pytest.mark.parametrize("path", [COMPLETIONS, "/admin/adapters"])
async def test_what_a_server_died_with_is_asked_again_unless_it_changes_something(
    url: str, servers: list[StubServer], path: str
) -> None:
    for server in servers:
        server.held.clear()
    asked = asyncio.create_task(asyncio.to_thread(ask, url, ADAPTERS[0], path))
    async with asyncio.timeout(30):
        while not any(server.num_asked for server in servers):
            await asyncio.sleep(0.01)
    other, dying = sorted(servers, key=lambda server: server.num_asked)
    other.held.set()
    dying.stop()
    answered_by = await asked
    dying.held.set()
    dying.start()
    assert answered_by == (other.name if path == COMPLETIONS else "")
    assert other.num_asked == (path == COMPLETIONS)


def test_clients_do_not_choose_the_server(url: str, servers: list[StubServer]) -> None:
    num_compared = 0
    for theirs in ADAPTERS[1:]:  # the header by which Envoy routes
        before = ask(url, ADAPTERS[0])
        headers, body = {"x-loraplex-route": theirs}, {"model": ADAPTERS[0]}
        answer = CLIENT.post(f"{url}/v1/completions", json=body, headers=headers)
        if ask(url, ADAPTERS[0]) == before:  # else the adapter has just found another home
            assert answer.json()["server"] == before
            num_compared += 1
    assert num_compared >= len(ADAPTERS) - 4


def test_metrics_are_not_for_clients(url: str) -> None:
    assert CLIENT.get(f"{url}/readyz").status_code == 200
    for path in ("/metrics", "/metrics?name=up", "/%6Detrics"):
        assert CLIENT.get(f"{url}{path}").status_code == 404
