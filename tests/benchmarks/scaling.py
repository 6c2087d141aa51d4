"""What 100 servers with 10,000 adapters come to: routing and caches, simulated.

    python -m tests.benchmarks.scaling [--requests 40000]

Prints two tables. Popularity is Zipf's. Requests go to servers by a ring of hashes, as in Envoy and
HAProxy: each adapter's to one server, unless that has more than its share of open requests
("Consistent Hashing with Bounded Loads", Mirrokni et al., 2016). Slots, host memory and engine are
the load tester's model (`loadtest/capacity/simulation.py`). How long tokens take is assumed here
(`Assumed`); the shares hardly depend on it.
"""

from __future__ import annotations

import argparse
import bisect
import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from loadtest.capacity.simulation import DISK, HOST, SLOT, Arrival, Served, Setting, simulate

NUM_ADAPTERS, NUM_SERVERS, NUM_ALIKE = 10_000, 100, 5
EXPONENTS = (1.0, 0.8)
POINTS = (11, 16, 256, 1024)
"""Of each server on the ring: 11 is what Envoy's smallest ring of 1,024 leaves 100 servers, 16 are
HAProxy's for a server of weight 1, 256 those for weight 16."""
BALANCE = 1.5
SLOTS, HOST_CACHES = 16, (64, 256, 1024)
RATE_OF_ONE_SERVER = 3.0
TOKENS_IN, TOKENS_OUT = 256, 128


class Assumed:
    """An 8B base on one GPU, roughly, in seconds: not measured."""

    def first_token(self, tokens_in: int, running: int) -> float:
        """From the start to the first token."""
        return 0.05 + 0.0002 * tokens_in

    def step(self, running: int) -> float:
        """Between two tokens."""
        return 0.02 + 0.0002 * running

    def load(self, tier: str) -> float:
        """To bring an adapter into a slot from there."""
        return {HOST: 0.02, DISK: 0.5}[tier]


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=40_000, help="of which half are counted")
    requests = parser.parse_args().requests
    console = Console()
    console.print(ring_table())
    console.print(cache_table(requests))


def shares(exponent: float) -> NDArray[np.float64]:
    """What part of the requests each adapter gets."""
    weights = 1 / np.arange(1, NUM_ADAPTERS + 1) ** exponent
    return np.asarray(weights / weights.sum())


class Ring:
    """Servers at points of a circle; a key belongs to the next point after its own."""

    def __init__(self, num_servers: int, points: int) -> None:
        placed = [(_hash(f"{s}/{p}"), s) for s in range(num_servers) for p in range(points)]
        self._places = sorted(placed)
        self._hashes = [place for place, _ in self._places]

    def home(self, key: str) -> int:
        """Whose it is."""
        return self._places[self._first(key)][1]

    def bounded(self, key: str, num_open: Sequence[int]) -> int:
        """The first server from its home on with fewer than `BALANCE` times its share."""
        most = math.ceil(BALANCE * (sum(num_open) + 1) / len(num_open))
        first = self._first(key)
        for step in range(len(self._places)):
            server = self._places[(first + step) % len(self._places)][1]
            if num_open[server] < most:
                return server
        raise AssertionError("one has no more than the average")

    def _first(self, key: str) -> int:
        return bisect.bisect(self._hashes, _hash(key)) % len(self._hashes)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def ring_table() -> Table:
    """How evenly a ring alone spreads adapters and requests, over ten rings."""
    table = Table(title=f"{NUM_ADAPTERS} adapters on {NUM_SERVERS} servers, no bound, 10 rings")
    for column in ("points a server", "adapters: most / mean", *(f"Zipf {e}" for e in EXPONENTS)):
        table.add_column(column)
    for points in POINTS:
        counts, loads = [], dict[float, list[float]]((e, []) for e in EXPONENTS)
        for number in range(10):
            ring = Ring(NUM_SERVERS, points)
            homes = [ring.home(f"{number}/adapter-{n}") for n in range(NUM_ADAPTERS)]
            counts.append(_most_over_mean(homes, np.ones(NUM_ADAPTERS)))
            for exponent in EXPONENTS:
                loads[exponent].append(_most_over_mean(homes, shares(exponent)))
        cells = [np.mean(counts), *(np.mean(loads[e]) for e in EXPONENTS)]
        table.add_row(str(points), *(f"{cell:.1f}" for cell in cells))
    return table


def _most_over_mean(homes: list[int], weights: NDArray[np.float64]) -> float:
    load = np.bincount(homes, weights=weights, minlength=NUM_SERVERS)
    return float(load.max() / load.mean())


def cache_table(requests: int) -> Table:
    """Where requests find their adapter, with any server for each and with one of its own."""
    title = f"{NUM_SERVERS} servers of {SLOTS} slots, {requests // 2} requests counted in each row"
    table = Table("Zipf", "host memory", "route", title=title)
    for column in ("slot", "host", "disk or origin", "TTFT P50, ms", "TTFT P99, ms", "at home"):
        table.add_column(column)
    for exponent in EXPONENTS:
        for host in HOST_CACHES:
            table.add_row(str(exponent), str(host), "any", *_anywhere(exponent, host, requests))
            table.add_row("", "", "ring, bounded", *_by_ring(exponent, host, requests))
    return table


def _anywhere(exponent: float, host: int, requests: int) -> list[str]:
    """Servers are then all alike, so that a few stand for all."""
    arrivals, rng = _arrivals(exponent, requests, NUM_ALIKE), np.random.default_rng(2)

    def route(_adapter: str, num_open: Sequence[int]) -> int:
        return int(rng.integers(len(num_open)))

    setting = Setting(SLOTS, host, NUM_ALIKE)
    return [*_cells(simulate(arrivals, setting, Assumed(), route=route)), ""]


def _by_ring(exponent: float, host: int, requests: int) -> list[str]:
    """Begins with what a server would have after a while: its most popular adapters."""
    ring, at_home = Ring(NUM_SERVERS, 256), list[bool]()

    def route(adapter: str, num_open: Sequence[int]) -> int:
        server = ring.bounded(adapter, num_open)
        at_home.append(server == ring.home(adapter))
        return server

    arrivals = _arrivals(exponent, requests, NUM_SERVERS)
    resident = {f"adapter-{n}": HOST for n in reversed(range(NUM_ADAPTERS))}
    setting = Setting(SLOTS, host, NUM_SERVERS)
    served = simulate(arrivals, setting, Assumed(), resident, route)
    return [*_cells(served), f"{np.mean(at_home[-requests // 2 :]):.1%}"]


def _arrivals(exponent: float, requests: int, num_servers: int) -> list[Arrival]:
    rng = np.random.default_rng(1)
    times = np.cumsum(rng.exponential(1 / (RATE_OF_ONE_SERVER * num_servers), requests))
    which = rng.choice(NUM_ADAPTERS, requests, p=shares(exponent))
    pairs = zip(times.tolist(), which.tolist(), strict=True)
    return [Arrival(at, f"adapter-{n}", TOKENS_IN, TOKENS_OUT) for at, n in pairs]


def _cells(served: list[Served]) -> list[str]:
    """Of the later half."""
    counted = sorted(served, key=lambda s: s.arrival.at)[len(served) // 2 :]
    found = [sum(s.tier == tier for s in counted) / len(counted) for tier in (SLOT, HOST, DISK)]
    times = np.percentile([s.ttft * 1000 for s in counted], (50, 99))
    return [*(f"{share:.1%}" for share in found), *(f"{time:.0f}" for time in times)]


if __name__ == "__main__":
    main()
