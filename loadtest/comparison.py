"""Two runs side by side: ratios with intervals. Pure.

Latencies of neighbouring requests depend on each other, so requests aren't drawn one by one: each
run is cut into slices of time, and whole slices are drawn (a block bootstrap, Künsch 1989).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtest.recorded import Recorded, Request

SLICES = 20
RESAMPLES = 1000
LEVEL = 0.95

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One measure of both runs, and the ratio of the second to the first."""

    name: str
    first: float
    second: float
    ratio: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        """Whether the interval leaves out that both are equal."""
        return not self.low <= 1 <= self.high


def compare(first: Recorded, second: Recorded, seed: int = 0) -> list[Row]:
    """Every measure that both runs have."""
    rows = []
    for name, (value_of, statistic) in _LATENCIES.items():
        slices = [_sliced(run, value_of) for run in (first, second)]
        if all(any(len(part) for part in parts) for parts in slices):
            rows.append(_row(name, slices[0], slices[1], statistic, seed))
    for name, amount in _RATES.items():
        slices = [_rates(run, amount) for run in (first, second)]
        rows.append(_row(name, slices[0], slices[1], lambda values: float(values.mean()), seed))
    return rows


def _percentile(percentile: float) -> Callable[[Values], float]:
    return lambda values: float(np.percentile(values, percentile))


_LATENCIES: dict[str, tuple[Callable[[Request], float | None], Callable[[Values], float]]] = {
    f"{name} {label}, ms": (value_of, _percentile(percentile))
    for name, value_of in (
        ("first token", lambda request: request.ttft_ms),
        ("time per output token", lambda request: request.tpot_ms),
        ("end to end", lambda request: request.e2e_ms),
    )
    for label, percentile in (("P50", 50), ("P90", 90), ("P99", 99))
}
_RATES: dict[str, Callable[[Request], float]] = {
    "requests/s": lambda _: 1.0,
    "output tokens/s": lambda request: float(request.output_tokens),
}


def _edges(run: Recorded) -> Values:
    end = float(run.summary["scenario"]["duration_seconds"])
    return np.linspace(run.warmup_seconds, max(end, run.warmup_seconds + 1e-3), SLICES + 1)


def _sliced(run: Recorded, value_of: Callable[[Request], float | None]) -> list[Values]:
    """The values of answered requests, by the slice in which they were due."""
    parts: list[list[float]] = [[] for _ in range(SLICES)]
    edges = _edges(run)
    for request in run.counted():
        value = value_of(request)
        if request.ok and value is not None:
            index = int(np.searchsorted(edges, request.at_seconds, side="right")) - 1
            parts[min(index, SLICES - 1)].append(value)
    return [np.array(part) for part in parts]


def _rates(run: Recorded, amount: Callable[[Request], float]) -> list[Values]:
    """What was done in each second of each slice; a request counts evenly over its time."""
    edges = _edges(run)
    totals = np.zeros(SLICES)
    for request in run.requests:
        if not request.ok:
            continue
        begin, end = request.at_seconds, max(request.done_seconds, request.at_seconds + 1e-6)
        inside = np.minimum(edges[1:], end) - np.maximum(edges[:-1], begin)
        totals += amount(request) * np.maximum(inside, 0) / (end - begin)
    return [np.array([rate]) for rate in totals / np.diff(edges)]


def _row(
    name: str,
    first: list[Values],
    second: list[Values],
    statistic: Callable[[Values], float],
    seed: int,
) -> Row:
    rng = np.random.default_rng(seed)
    a, b = statistic(np.concatenate(first)), statistic(np.concatenate(second))
    ratios = []
    for _ in range(RESAMPLES):
        drawn = [
            np.concatenate([parts[i] for i in rng.integers(0, SLICES, SLICES)])
            for parts in (first, second)
        ]
        if all(len(values) for values in drawn):
            ratios.append(_ratio(statistic(drawn[0]), statistic(drawn[1])))
    tail = (1 - LEVEL) / 2 * 100
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return Row(name, a, b, _ratio(a, b), float(low), float(high))


def _ratio(first: float, second: float) -> float:
    return second / first if first else float("inf") if second else 1.0
