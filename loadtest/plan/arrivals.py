"""Draws when requests arrive, in seconds from the start of the run. Pure."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from loadtest.errors import LoadTestError
from loadtest.plan.scenario import Gamma, Poisson, Ramp, Trace


def arrival_times(
    arrivals: Poisson | Gamma | Ramp, seconds: float, rng: np.random.Generator
) -> Iterator[float]:
    """Return ascending times below `seconds`."""
    if isinstance(arrivals, Ramp):
        return _ramp(arrivals, seconds, rng)
    # A Poisson process has exponential gaps: Gamma with shape 1.
    cv = arrivals.cv if isinstance(arrivals, Gamma) else 1.0
    return _renewal(1 / cv**2, cv**2 / arrivals.rate, seconds, rng)


def _renewal(
    shape: float, scale: float, seconds: float, rng: np.random.Generator
) -> Iterator[float]:
    at = rng.gamma(shape, scale)
    while at < seconds:
        yield at
        at += rng.gamma(shape, scale)


def _ramp(ramp: Ramp, seconds: float, rng: np.random.Generator) -> Iterator[float]:
    """Thinning (Lewis and Shedler 1979): candidates at the highest rate, kept in proportion."""
    highest = max(ramp.rate, ramp.to_rate)
    for at in _renewal(1.0, 1 / highest, seconds, rng):
        rate = ramp.rate + (ramp.to_rate - ramp.rate) * at / seconds
        if rng.random() * highest < rate:
            yield at


@dataclass(frozen=True)
class TraceRow:
    """One recorded request. A field is None if the trace doesn't have it."""

    at: float
    model: str | None
    tenant: str | None
    input_tokens: int | None
    output_tokens: int | None


def read_trace(trace: Trace) -> list[TraceRow]:
    """Read the rows of a trace, by time. The first is at 0.

    Raises:
        LoadTestError: the file or a row can't be read.
    """
    try:
        with trace.file.open(newline="") as file:
            rows = [_row(row, trace.speed) for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise LoadTestError(f"{trace.file} isn't a trace: {error!r}") from error
    if not rows:
        raise LoadTestError(f"{trace.file} has no requests")
    rows.sort(key=lambda row: row.at)
    start = rows[0].at
    return [
        TraceRow(r.at - start, r.model, r.tenant, r.input_tokens, r.output_tokens) for r in rows
    ]


def _row(row: dict[str, str], speed: float) -> TraceRow:
    def number(column: str) -> int | None:
        return int(float(row[column])) or None if row.get(column) else None

    at = float(row["at_seconds"]) / speed
    model, tenant = row.get("model") or None, row.get("tenant") or None
    return TraceRow(at, model, tenant, number("input_tokens"), number("output_tokens"))
