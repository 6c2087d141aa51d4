"""The simulation does what caches and shared engines do, and finds again what it was made from."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest

from loadtest.capacity.fit import Measured, arrivals_of, fit, forecast, measured, resident_at_first
from loadtest.capacity.report import report
from loadtest.capacity.simulation import DISK, HOST, SLOT, Arrival, Served, Setting, simulate
from loadtest.errors import LoadTestError
from loadtest.report.recorded import Recorded, Request


class Constant:
    """First token after 0.1 s, 0.01 s a step, 1 s from disk, 0.2 s from the host."""

    def first_token(self, tokens_in: int, running: int) -> float:
        return 0.1

    def step(self, running: int) -> float:
        return 0.01

    def load(self, tier: str) -> float:
        return {HOST: 0.2, DISK: 1.0}[tier]


def serve(*asked: tuple[float, str | None], slots: int = 1, host: int = 2) -> list[Served]:
    arrivals = [Arrival(at, adapter, 8, 11) for at, adapter in asked]
    return simulate(arrivals, Setting(slots, host), Constant())


def test_an_adapter_is_loaded_once_and_then_there() -> None:
    cold, meanwhile, warm = serve((0, "a"), (0.5, "a"), (5, "a"))
    assert (cold.tier, warm.tier) == (DISK, SLOT)
    assert [s.ttft for s in (cold, meanwhile, warm)] == pytest.approx([1.1, 0.6, 0.1])
    assert warm.e2e == pytest.approx(0.1 + 10 * 0.01)


def test_what_was_evicted_is_found_in_the_host_cache_until_that_is_full() -> None:
    tiers = [s.tier for s in serve((0, "a"), (5, "b"), (10, "a"), (15, "b"), (20, "c"), (25, "a"))]
    assert tiers == [DISK, DISK, HOST, HOST, DISK, DISK]


def test_what_was_resident_when_it_began_is_found_there() -> None:
    arrivals = [Arrival(at, adapter, 8, 2) for at, adapter in ((0, "a"), (5, "b"), (10, "c"))]
    resident = {"a": SLOT, "b": HOST}
    served = simulate(arrivals, Setting(1, 2), Constant(), resident)
    assert [s.tier for s in served] == [SLOT, HOST, DISK]
    run = made_up_run()
    assert resident_at_first(run) == {}
    late = Recorded(run.summary, run.requests[300:])
    assert HOST in set(resident_at_first(late).values()) <= {SLOT, HOST}


def test_a_slot_in_use_isnt_taken() -> None:
    first, second = serve((0, "a"), (1.05, "b"))
    assert first.e2e == pytest.approx(1.2)
    assert second.ttft == pytest.approx(1.2 - 1.05 + 1.0 + 0.1)


def test_the_base_needs_no_slot() -> None:
    adapter, base = serve((0, "a"), (0, None))
    assert (adapter.tier, base.tier) == (DISK, "")
    assert base.ttft == pytest.approx(0.1)


def test_streams_share_the_engine() -> None:
    class Shared(Constant):
        def step(self, running: int) -> float:
            return 0.01 * running

    one, two = (
        simulate([Arrival(0, None, 8, 11)] * number, Setting(1, 1), Shared()) for number in (1, 2)
    )
    assert one[0].e2e == pytest.approx(0.2)
    assert [s.e2e for s in two] == pytest.approx([0.3, 0.3])


def test_more_slots_more_hits_and_replicas_keep_their_adapters() -> None:
    rng = np.random.default_rng(1)
    arrivals = [Arrival(i * 2.0, f"a{min(rng.zipf(1.5), 30)}", 8, 5) for i in range(400)]
    hits = []
    for slots in (1, 2, 4, 8, 32):
        served = simulate(arrivals, Setting(slots, 64), Constant())
        hits.append(sum(s.tier == SLOT for s in served))
    assert hits == sorted(hits)
    assert hits[0] < hits[-1]
    over_two = simulate(arrivals, Setting(32, 64, replicas=2), Constant())
    assert sum(s.tier == DISK for s in over_two) == len({a.adapter for a in arrivals})


def test_a_route_sees_how_many_requests_each_replica_has_open() -> None:
    seen: list[tuple[str, list[int]]] = []

    def to_the_emptiest(adapter: str, num_open: Sequence[int]) -> int:
        seen.append((adapter, list(num_open)))
        return list(num_open).index(min(num_open))

    arrivals = [Arrival(at, "a", 8, 11) for at in (0.0, 0.5, 0.9, 9.0)]
    served = simulate(arrivals, Setting(1, 2, replicas=2), Constant(), route=to_the_emptiest)
    assert seen == [("a", [0, 0]), ("a", [1, 0]), ("a", [1, 1]), ("a", [0, 0])]
    assert sorted(s.tier for s in served) == [DISK, DISK, HOST, SLOT]


def made_up_run(seed: int = 1) -> Recorded:
    """A run of the simulation itself, with known times."""
    rng = np.random.default_rng(seed)
    loads = {HOST: rng.normal(0.2, 0.02, 50), DISK: rng.normal(0.8, 0.05, 50)}
    truth = Measured((0.05, 0.001, 0.01), (0.02, 0.003), rng.normal(0, 0.01, 200), loads, rng)
    at = np.cumsum(rng.exponential(0.5, 600))
    arrivals = [
        Arrival(float(t), f"a{min(rng.zipf(1.4), 40)}", int(rng.integers(10, 200)), 20) for t in at
    ]
    requests = [
        Request(
            s.arrival.at,
            s.arrival.adapter or "base",
            s.tier,
            "ok",
            s.arrival.tokens_in,
            s.arrival.tokens_out,
            s.ttft * 1000,
            (s.e2e - s.ttft) * 1000 / 19,
            s.e2e * 1000,
        )
        for s in simulate(arrivals, Setting(4, 16), truth)
    ]
    flags = ["--max-loras", "4"]
    scenario = {"warmup_seconds": 0, "server_flags": flags}
    return Recorded({"scenario": scenario, "base": "base"}, requests)


def test_a_run_is_found_again() -> None:
    run = made_up_run()
    setting = Setting(4, 16)
    simulated = forecast(arrivals_of(run, "base"), setting, fit(run), {})
    real = measured(run, setting)
    assert simulated.slot_hits == pytest.approx(real.slot_hits, abs=0.03)
    assert simulated.host_hits == pytest.approx(real.host_hits, abs=0.03)
    assert simulated.ttft_p50 == pytest.approx(real.ttft_p50, rel=0.1)
    assert simulated.ttft_p99 == pytest.approx(real.ttft_p99, rel=0.15)
    assert simulated.e2e_p99 == pytest.approx(real.e2e_p99, rel=0.15)


def test_the_report_shows_the_error() -> None:
    table, check, line = report(made_up_run(), None, [2, 8], None, [1, 2], None)
    assert isinstance(line, str)
    found = re.search(r"TTFT P50 ([+-]\d+)% \((\d+) / (\d+)\)", line)
    assert found
    assert int(found[1]) == pytest.approx((int(found[2]) / int(found[3]) - 1) * 100, abs=1.5)
    assert (table.row_count, check.row_count) == (4, 3)  # type: ignore[union-attr]


def test_too_short_a_run_is_refused() -> None:
    run = made_up_run()
    with pytest.raises(LoadTestError, match="20 answers"):
        fit(Recorded(run.summary, run.requests[:5]))
