"""Confidence intervals for one side of a split, and for the difference of both sides. Pure.

`z` is the quantile of the normal distribution that belongs to the confidence: 1.96 for 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple


class Interval(NamedTuple):
    """An estimate and the bounds of its interval, which may be infinite."""

    value: float
    low: float
    high: float


def proportion(count: int, total: int, z: float) -> Interval:
    """Return the share of `count` in `total`, with Wilson's score interval (Wilson, 1927)."""
    if not total:
        return Interval(0.0, 0.0, 1.0)
    share, square = count / total, z * z / total
    middle = (share + square / 2) / (1 + square)
    half = z * math.sqrt(share * (1 - share) / total + square / (4 * total)) / (1 + square)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def quantile(counts: Mapping[float, int], share: float, z: float) -> Interval:
    """Return the value that a share of positive values does not exceed.

    `counts` has how often each value occurs. The bounds are order statistics, whose ranks are those
    of the normal approximation to the binomial distribution (Conover, Practical Nonparametric
    Statistics, 1999). So no distribution of the values is assumed. If there are too few values for
    such a rank, the bound is 0 or infinite. Without any value the estimate is 0.
    """
    total = sum(counts.values())
    half = z * math.sqrt(total * share * (1 - share))
    low, high = math.floor(total * share - half), math.ceil(total * share + half) + 1
    return Interval(
        _at_rank(counts, max(1, math.ceil(total * share))) if total else 0.0,
        _at_rank(counts, low) if low >= 1 else 0.0,
        _at_rank(counts, high) if high <= total else math.inf,
    )


def _at_rank(counts: Mapping[float, int], rank: int) -> float:
    seen = 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= rank:
            return value
    raise ValueError(f"there are only {seen} values")


def mean(total: float, total_of_squares: float, count: int, z: float) -> Interval:
    """Return the mean of `count` values with the interval of the normal distribution."""
    if count < 2:
        return Interval(total, -math.inf, math.inf)
    value = total / count
    variance = max(0.0, total_of_squares / count - value * value) * count / (count - 1)
    half = z * math.sqrt(variance / count)
    return Interval(value, value - half, value + half)


def difference(one: Interval, other: Interval) -> Interval:
    """Return one estimate minus another, which do not depend on each other.

    The bounds combine those of both estimates: the method of variance estimates recovery (Zou and
    Donner, 2008), which for proportions is Newcombe's hybrid score interval (Newcombe, 1998).
    """
    value = one.value - other.value
    down = math.hypot(one.value - one.low, other.high - other.value)
    up = math.hypot(one.high - one.value, other.value - other.low)
    return Interval(value, value - down, value + up)


def ratio(one: Interval, other: Interval) -> Interval:
    """Return one positive estimate divided by another: the difference of their logarithms."""
    logs = difference(Interval(*map(_log, one)), Interval(*map(_log, other)))
    return Interval(*map(_exp, logs))


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0)) if value < math.inf else math.inf
