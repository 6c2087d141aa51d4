"""Times of answers, on a clock set by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from server import metrics
from server.tenancy.meter import Meter
from server.tenancy.prompt_queue import PromptQueue
from server.tenancy.timing import Timing

NAMES = ("time_to_first_token", "inter_token", "request")


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def observed(adapter: str, tier: str = "host") -> dict[str, tuple[float, float]]:
    """How often and how much in all, of each histogram."""
    labels = {"tenant": "acme", "adapter": adapter, "tier": tier}

    def value(name: str, suffix: str) -> Any:
        return REGISTRY.get_sample_value(f"loraplex_{name}_seconds_{suffix}", labels)

    return {name: (value(name, "count"), round(value(name, "sum"), 6)) for name in NAMES}


def test_a_stream(clock: Clock) -> None:
    times = Timing(90.0, "acme", "acme/streamed", "host", clock.monotonic)
    last = times.tokens(1, None)
    clock.now += 0.5
    last = times.tokens(1, last)
    clock.now += 2.0
    times.tokens(4, last)  # as with speculative decoding
    clock.now += 1.0
    times.end()
    assert observed("acme/streamed") == {
        "time_to_first_token": (1, 10.0),
        "inter_token": (2, 1.0),
        "request": (1, 13.5),
    }


def test_times_between_tokens_are_in_their_buckets_within_a_second(clock: Clock) -> None:
    times = Timing(clock.now, "acme", "acme/buckets", "host", clock.monotonic)
    last = times.tokens(1, None)
    for seconds in (0.004, 0.008, 0.015, 3.0, 9.0, 0.5):
        clock.now += seconds
        last = times.tokens(1, last)
    labels = {"tenant": "acme", "adapter": "acme/buckets", "tier": "host"}
    found = {
        bound: REGISTRY.get_sample_value(
            "loraplex_inter_token_seconds_bucket", {**labels, "le": bound}
        )
        for bound in ("0.005", "0.01", "0.02", "1.0", "5.0", "+Inf")
    }
    assert found == {"0.005": 1, "0.01": 2, "0.02": 3, "1.0": 3, "5.0": 4, "+Inf": 5}
    times.end()
    assert observed("acme/buckets")["inter_token"] == (6, 12.527)


def test_a_request_without_an_answer_is_not_timed() -> None:
    Timing(90.0, "acme", "acme/none", "host").end()
    assert observed("acme/none")["request"] == (0, 0)


async def test_the_choices_of_an_answer_have_gaps_of_their_own(clock: Clock) -> None:
    times = Timing(clock.now, "acme", "acme/choices", "host", clock.monotonic)
    meter = Meter(PromptQueue(4, 100), "acme", timing=times)
    async with meter.admission(10) as answer:
        for _ in range(3):
            for choice in (0, 1):
                clock.now += 0.25
                answer.add(1, choice)
            answer.add(0, 0)
    times.end()
    assert meter.output_tokens == 6
    assert observed("acme/choices")["time_to_first_token"] == (1, 0.25)
    assert observed("acme/choices")["inter_token"] == (4, 2.0)


def test_histograms_have_a_bounded_number_of_series(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def capped(*values: str) -> tuple[str, ...]:
        asked.append(values)
        return ("other", "other")

    monkeypatch.setattr(metrics, "timed_labels", SimpleNamespace(of=capped))
    before = REGISTRY.get_sample_value(
        "loraplex_request_seconds_count",
        labels := dict.fromkeys(("tenant", "adapter"), "other") | {"tier": "slot"},
    )
    times = Timing(90.0, "acme", "acme/late", "slot")
    times.tokens(1, None)
    times.end()
    assert asked == [("acme", "acme/late")]
    after = REGISTRY.get_sample_value("loraplex_request_seconds_count", labels)
    assert after == (before or 0) + 1
