"""More adapters than slots: who is asked for, and what the figures mean."""

import itertools
from collections import Counter

import numpy as np
import pytest

from loadtest.drive.random_adapters import LlamaShape
from loadtest.measurements import many_adapters
from loadtest.measurements.many_adapters import Phase, report, zipf
from loadtest.outcome.request_outcome import Outcome
from tests.loadtest.fake_server import FakeServer, measured
from tests.tiny import TINY_BASE

SHAPE = LlamaShape.from_config(TINY_BASE)


def answers(*first_tokens: float) -> list[Outcome]:
    return [
        Outcome("default", "a", 10.0, 10.0, 10.0, 1, tier="slot", first=10.0 + first)
        for first in first_tokens
    ]


def test_popularity_falls_with_the_rank() -> None:
    names = [str(n) for n in range(1, 101)]
    asked = itertools.islice(zipf(np.random.default_rng(0), names), 20_000)
    count = Counter(asked)
    for rank in (2, 4, 8):
        assert count["1"] / count[str(rank)] == pytest.approx(rank, rel=0.15)


def test_figures_compare_phases_of_a_kind() -> None:
    phases = {
        "32 clients, few": Phase(answers(0.1), [], 1000, 10.0),
        "32 clients, many": Phase(answers(0.1), ["503"], 900, 10.0),
        "16 clients, few": Phase(answers(0.1), [], 2000, 10.0),
        "16 clients, many": Phase(answers(0.1), [], 1000, 10.0),
        "8 in 8": Phase(answers(0.1, 0.2, 0.3), [], 1, 1.0),
        "16 in 8": Phase(answers(0.3, 0.3, 9.0), [], 1, 1.0),
    }
    _, result = report(phases, 8, 1000, 60)
    assert [result["throughput_by_clients"][n]["ratio"] for n in ("32", "16")] == [0.9, 0.5]
    assert result["median_first_token_ms"]["ratio"] == 1.5
    assert result["longest_first_token_seconds"] == 9.0
    assert (result["requests"], result["failed"]) == (11, 1)


async def test_clients_ask_all_adapters() -> None:
    server = FakeServer(slots=8)
    server.live["bench-many-3"] = server.versions["bench-many-3"] = 1
    async with measured(server.app()) as connected:
        _, result = await many_adapters.run(
            connected,
            SHAPE,
            lambda _: None,
            num_adapters=24,
            slot_wait_seconds=60,
            popularity_seconds=0.2,
            quantum_seconds=0.2,
        )
    assert result["registered"]["adapters"] == 23, "one was there"
    assert set(server.versions.values()) == {1}
    assert result["failed"] == 0
    assert result["requests"] >= 5 * 16
    assert result["throughput_by_clients"]["32"]["many"] > 0
