"""What two replicas do for each other, with every part real: engines, PostgreSQL, S3, proxies.

python -m tests.benchmarks.replicas [affinity] [kill] [database] [rolling]

Prints a table for each, and all as one line of JSON. `affinity`: requests for an adapter stay with
one replica, beside round robin. `kill`: one replica is killed under load. `database`: PostgreSQL is
stopped under load. `rolling`: both are restarted under load. In the last three, clients ask through
Envoy and HAProxy at the same time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from loadtest.drive.random_adapters import LlamaShape, make_adapter
from loadtest.errors import LoadTestError
from loadtest.measurements.measured_server import MeasuredServer
from loadtest.plan.scenario import Closed, Poisson
from tests.benchmarks.fleet import NUM_REPLICAS, START_SECONDS, Fleet, Replica, started_fleet
from tests.benchmarks.fleet_load import (
    NUM_ADAPTERS,
    find_homes,
    loaded,
    scenario,
    share_at_home,
    under_load,
)

MODERATE_RATE = 1.5
"""Requests a second; the two engines have one core each, which others use too."""
MODERATE_SECONDS = 40
OVERLOAD_SECONDS = 15
OVERLOAD_CLIENTS = 12
AWAY_SECONDS = 30
REGISTRATIONS, TRIES = 2, 10
SETTLE_SECONDS = 5
"""A proxy looks whether a server is ready every two."""
LOOK_SECONDS = 10

Rows = dict[str, int | float | str]
Phase = Callable[[Fleet], Awaitable[dict[str, Rows]]]


async def affinity(fleet: Fleet) -> dict[str, Rows]:
    """By proxy: where an adapter's requests go, and how often it is loaded."""
    proxies = {"envoy": fleet.envoy, "haproxy": fleet.haproxy, "by-turns": fleet.by_turns}
    return {name: await _affinity(fleet, name, proxy.url) for name, proxy in proxies.items()}


async def _affinity(fleet: Fleet, prefix: str, url: str) -> Rows:
    loads = fleet.num_loads()
    homes = await find_homes(fleet, url, prefix)
    before = fleet.answered()
    moderate = scenario(prefix, Poisson(process="poisson", rate=MODERATE_RATE), MODERATE_SECONDS)
    run = await loaded(url, fleet.key, moderate)
    after, loads = fleet.answered(), fleet.num_loads() - loads
    at_home, num_requests = share_at_home(homes, before, after)
    busy = sum(o.done - o.sent for o in run.outcomes) / run.seconds
    rows: Rows = {
        "adapters with a home on replica one / two": "{} / {}".format(
            *(Counter(homes.values())[n] for n in range(NUM_REPLICAS))
        ),
        "requests": num_requests,
        "failed": sum(o.is_error for o in run.outcomes),
        "open at a time, mean": round(busy, 1),
        "answered by the adapter's home": f"{at_home} ({at_home / num_requests:.0%})",
        "loads in the fleet": f"{loads} ({loads / NUM_ADAPTERS:.2f} per adapter)",
    }
    return rows | await _overload(fleet, prefix, url, homes)


async def _overload(fleet: Fleet, prefix: str, url: str, homes: dict[str, int]) -> Rows:
    """All clients ask for one adapter."""
    before = fleet.answered()
    closed = Closed(process="closed", concurrency=OVERLOAD_CLIENTS)
    run = await loaded(url, fleet.key, scenario(prefix, closed, OVERLOAD_SECONDS, count=1))
    hot = f"default/{prefix}-0"
    after = fleet.answered()
    at_home, num_requests = share_at_home({hot: homes[hot]}, before, after)
    return {
        f"{OVERLOAD_CLIENTS} clients, one adapter: requests": num_requests,
        "of these failed": sum(o.is_error for o in run.outcomes),
        "of these answered by its home": f"{at_home} ({at_home / num_requests:.0%})",
    }


async def kill(fleet: Fleet) -> dict[str, Rows]:
    """SIGKILL for a replica under load, which its supervisor then starts again."""
    homes = await _all_homes(fleet)
    victim = fleet.replicas[1]
    async with under_load(fleet) as loads:
        await asyncio.sleep(LOOK_SECONDS)
        leases = await asyncio.to_thread(victim.count, "loraplex_leases")
        killed_at, in_flight = loads.times(), loads.in_flight()
        victim.process.process.kill()
        victim.process.process.wait()
        await asyncio.sleep(SETTLE_SECONDS)
        victim.start()
        await _ready(victim)
        await asyncio.sleep(SETTLE_SECONDS)
        before = await asyncio.to_thread(fleet.answered)
        await asyncio.sleep(2 * LOOK_SECONDS)
        after = await asyncio.to_thread(fleet.answered)
    at_home, num_requests = share_at_home(homes, before, after)
    rows: Rows = {
        **loads.counts(),
        "in flight at the kill, on both replicas": in_flight,
        "on the killed one (its metric, just before)": leases.total(),
        "failed, of those sent after the kill": loads.failed_since(killed_at),
        "once it is back: answered by the adapter's home": f"{at_home} of {num_requests}",
    }
    return {"kill": rows}


async def database(fleet: Fleet) -> dict[str, Rows]:
    """PostgreSQL stops for a while under load; changes are tried meanwhile, and afterwards."""
    await register_second_version(fleet)
    refused: Counter[str] = Counter()
    readiness: Counter[str] = Counter()
    async with under_load(fleet) as loads, _admin(fleet) as http:
        await asyncio.sleep(SETTLE_SECONDS)
        await asyncio.to_thread(fleet.postgres.halt)
        try:
            ends_at = time.monotonic() + AWAY_SECONDS
            while time.monotonic() < ends_at:
                await asyncio.sleep(SETTLE_SECONDS)
                for replica in fleet.replicas:
                    answer = await _promote(http, replica, 1)
                    refused[f"{answer.status_code} {answer.json()['error']['code']}"] += 1
                    readiness[await _readiness(http, replica)] += 1
        finally:
            await asyncio.to_thread(fleet.postgres.start)
        back_at = time.monotonic()
        caught_up = await _until_reachable(http, fleet) - back_at
        seen = [await _promotion_seen(http, fleet, through) for through in range(NUM_REPLICAS)]
    first_through_one, first_through_two = (", ".join(f"{s:.2f}" for s in both) for both in seen)
    rows: Rows = {
        **loads.counts(),
        "changes meanwhile": ", ".join(f"{n} x {what}" for what, n in refused.items()),
        "readiness meanwhile": ", ".join(f"{n} x {what}" for what, n in readiness.items()),
        "both have caught up after, s": round(caught_up, 2),
        "a promotion through replica one answers on one, two after, s": first_through_one,
        "a promotion through replica two answers on one, two after, s": first_through_two,
    }
    return {"database": rows}


async def rolling(fleet: Fleet) -> dict[str, Rows]:
    """SIGTERM for one replica after the other; the next when the last is ready again."""
    codes = []
    async with under_load(fleet) as loads:
        await asyncio.sleep(SETTLE_SECONDS)
        for replica in fleet.replicas:
            codes.append(await asyncio.to_thread(replica.process.terminate, 120))
            replica.start()
            await _ready(replica)
            await asyncio.sleep(SETTLE_SECONDS)
        before = await asyncio.to_thread(fleet.answered)
        await asyncio.sleep(LOOK_SECONDS)
        after = await asyncio.to_thread(fleet.answered)
    gained = [(a - b).total() for a, b in zip(after, before, strict=True)]
    rows: Rows = {
        **loads.counts(),
        "exit codes": ", ".join(map(str, codes)),
        "requests answered by one, two afterwards": "{}, {}".format(*gained),
    }
    return {"rolling": rows}


async def _all_homes(fleet: Fleet) -> dict[str, int]:
    homes = await find_homes(fleet, fleet.envoy.url, "envoy")
    return homes | await find_homes(fleet, fleet.haproxy.url, "haproxy")


async def _ready(replica: Replica) -> None:
    await asyncio.to_thread(replica.process.wait_until_ready, START_SECONDS)


def _admin(fleet: Fleet) -> httpx.AsyncClient:
    return httpx.AsyncClient(headers={"Authorization": f"Bearer {fleet.key}"}, timeout=120)


async def _promote(http: httpx.AsyncClient, replica: Replica, version: int) -> httpx.Response:
    path = "/admin/adapters/default/envoy-0/aliases/live"
    return await http.put(f"{replica.url}{path}", json={"targets": [{"version": version}]})


async def _readiness(http: httpx.AsyncClient, replica: Replica) -> str:
    answer = await http.get(f"{replica.url}/readyz")
    registry = answer.json().get("registry", {})
    return f"{answer.status_code}, registry reachable: {registry.get('reachable')}"


async def _until_reachable(http: httpx.AsyncClient, fleet: Fleet) -> float:
    """When both say that they see the registry again."""
    for replica in fleet.replicas:
        while not (await _readiness(http, replica)).endswith("True"):
            await asyncio.sleep(0.05)
    return time.monotonic()


async def _promotion_seen(http: httpx.AsyncClient, fleet: Fleet, through: int) -> list[float]:
    """Promote the other version; for each replica, seconds until a request sent gets it."""
    version = 1 + through
    answer = await _promote(http, fleet.replicas[through], version)
    answer.raise_for_status()
    promoted_at = time.monotonic()
    seen = (_first_answer_of(http, replica, version) for replica in fleet.replicas)
    return [max(0.0, at - promoted_at) for at in await asyncio.gather(*seen)]


async def _first_answer_of(http: httpx.AsyncClient, replica: Replica, version: int) -> float:
    """When the first request was sent that the version answers."""
    body = {"model": "envoy-0", "prompt": [1000], "max_tokens": 1}
    while True:
        sent_at = time.monotonic()
        answer = await http.post(f"{replica.url}/v1/completions", json=body)
        if answer.raise_for_status().headers["x-adapter-version"] == str(version):
            return sent_at


async def register_all(fleet: Fleet, prefixes: list[str]) -> None:
    """The adapters of the phases, through Envoy, so that both replicas take in their share."""
    names = [f"{prefix}-{number}" for prefix in prefixes for number in range(NUM_ADAPTERS)]
    queue = iter(enumerate(names))
    async with MeasuredServer.connect(fleet.envoy.url, fleet.key) as server:

        async def work() -> None:
            for seed, name in queue:
                await register(server, name, seed)

        await asyncio.gather(*(work() for _ in range(REGISTRATIONS)))


async def register(server: MeasuredServer, name: str, seed: int) -> None:
    """One random adapter; again where the S3 server, on a busy machine, wasn't up to it."""
    with tempfile.TemporaryDirectory() as parent:
        directory = Path(parent) / name
        await asyncio.to_thread(make_adapter, directory, LlamaShape(), rank=4, seed=seed)
        for attempts_left in reversed(range(TRIES)):
            try:
                await server.register(name, directory)
                return
            except LoadTestError as error:
                if not attempts_left or "store_unavailable" not in str(error):
                    raise
            await asyncio.sleep(SETTLE_SECONDS)


async def register_second_version(fleet: Fleet) -> None:
    """Of the adapter that is then promoted to and fro."""
    async with MeasuredServer.connect(fleet.envoy.url, fleet.key) as server:
        await register(server, "envoy-0", 1000)


PHASES: dict[str, Phase] = {
    "affinity": affinity,
    "kill": kill,
    "database": database,
    "rolling": rolling,
}


async def measure(names: list[str], console: Console) -> dict[str, dict[str, Rows]]:
    """Carry out some phases on one fleet, printing as they end."""
    results = {}
    parent = tempfile.TemporaryDirectory(prefix="loraplex-fleet-")
    with parent as folder, started_fleet(Path(folder)) as fleet:
        prefixes = ["envoy", "haproxy", *(["by-turns"] if "affinity" in names else [])]
        await register_all(fleet, prefixes)
        for name in names:
            results[name] = await PHASES[name](fleet)
            console.print(table(name, results[name]))
    return results


def table(title: str, columns: dict[str, Rows]) -> Table:
    """What one phase has found."""
    shown = Table("", *columns, title=title)
    for row in next(iter(columns.values())):
        shown.add_row(row, *(str(column.get(row, "")) for column in columns.values()))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("phases", nargs="*", choices=list(PHASES), default=list(PHASES))
    names = parser.parse_args().phases
    print(json.dumps(asyncio.run(measure(names, Console(width=140)))))


if __name__ == "__main__":
    main()
