"""Compares two runs: ratios with confidence intervals. Pure.

The intervals are those of a block bootstrap (Künsch 1989). Latencies of neighbouring requests
depend on each other. Therefore each run is cut into slices of time, and whole slices are drawn
instead of single requests. Of several rounds, whole rounds are drawn first, with both runs of a
round together, so that the intervals hold what changes from round to round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtest.report.recorded import Recorded, Request

SLICES = 20
RESAMPLES = 1000
LEVEL = 0.95

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One measure of both sides, with the ratio of the second to the first and its interval."""

    name: str
    first: float
    second: float
    ratio: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        """Return whether the interval excludes a ratio of 1."""
        return not self.low <= 1 <= self.high


def compare(
    rounds: Sequence[tuple[Recorded, Recorded]], seed: int = 0, resamples: int = RESAMPLES
) -> list[Row]:
    """Compare every measure that both sides have, over one or several rounds of a run of each."""
    rows = []
    for name, (value_of, statistic) in _LATENCIES.items():
        pairs = [(_sliced(a, value_of), _sliced(b, value_of)) for a, b in rounds]
        if all(any(len(_joined(pair[side])) for pair in pairs) for side in (0, 1)):
            rows.append(_row(name, pairs, statistic, seed, resamples))
    for name, amount in _RATES.items():
        pairs = [(_rates(a, amount), _rates(b, amount)) for a, b in rounds]
        rows.append(_row(name, pairs, lambda values: float(values.mean()), seed, resamples))
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
    """Return the values of answered requests, by the slice in which they were due."""
    parts: list[list[float]] = [[] for _ in range(SLICES)]
    edges = _edges(run)
    for request in run.counted():
        value = value_of(request)
        if request.ok and value is not None:
            index = int(np.searchsorted(edges, request.at_seconds, side="right")) - 1
            parts[min(index, SLICES - 1)].append(value)
    return [np.array(part) for part in parts]


def _rates(run: Recorded, amount: Callable[[Request], float]) -> list[Values]:
    """Return the rate in each slice. A request counts evenly over the time that it took."""
    edges = _edges(run)
    totals = np.zeros(SLICES)
    for request in run.requests:
        if not request.ok:
            continue
        begin, end = request.at_seconds, max(request.done_seconds, request.at_seconds + 1e-6)
        inside = np.minimum(edges[1:], end) - np.maximum(edges[:-1], begin)
        totals += amount(request) * np.maximum(inside, 0) / (end - begin)
    return [np.array([rate]) for rate in totals / np.diff(edges)]


def _joined(slices: Sequence[Values]) -> Values:
    return np.concatenate(slices)


def _row(
    name: str,
    rounds: Sequence[tuple[list[Values], list[Values]]],
    statistic: Callable[[Values], float],
    seed: int,
    resamples: int,
) -> Row:
    rng = np.random.default_rng(seed)

    def drawn(slices: list[Values]) -> Values:
        return _joined([slices[i] for i in rng.integers(0, SLICES, SLICES)])

    ratios = []
    for _ in range(resamples):
        chosen = [rounds[i] for i in rng.integers(0, len(rounds), len(rounds))]
        a, b = (_joined([drawn(pair[side]) for pair in chosen]) for side in (0, 1))
        if len(a) and len(b):
            ratios.append(_ratio(statistic(a), statistic(b)))
    tail = (1 - LEVEL) / 2 * 100
    low, high = np.percentile(ratios, [tail, 100 - tail])
    first, second = (statistic(_joined([_joined(p[side]) for p in rounds])) for side in (0, 1))
    return Row(name, first, second, _ratio(first, second), float(low), float(high))


def _ratio(first: float, second: float) -> float:
    return second / first if first else float("inf") if second else 1.0
