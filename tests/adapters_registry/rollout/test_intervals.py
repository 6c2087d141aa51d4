"""The intervals, against published examples and by how often they hold the truth."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from adapters_registry.rollout.intervals import (
    Interval,
    difference,
    mean,
    proportion,
    quantile,
    ratio,
)

Z = 1.959964


def test_a_share_as_newcombe_publishes_it() -> None:
    assert proportion(81, 263, Z) == pytest.approx((0.3080, 0.2553, 0.3662), abs=1e-4)
    assert proportion(0, 20, Z) == pytest.approx((0, 0, 0.1611), abs=1e-4)
    assert proportion(0, 0, Z) == (0, 0, 1)


def test_a_difference_of_shares_as_newcombe_publishes_it() -> None:
    gap = difference(proportion(56, 70, Z), proportion(48, 80, Z))
    assert gap == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def test_quantiles_are_order_statistics() -> None:
    counts = {float(value): 1 for value in range(1, 1001)}
    assert quantile(counts, 0.95, Z) == (950, 936, 965)
    assert quantile({3.0: 40}, 0.95, Z) == (3, 3, math.inf), "too few for an upper bound"
    assert quantile({}, 0.95, Z) == (0, 0, math.inf)


def test_a_mean() -> None:
    values = [1, 2, 3, 4]
    found = mean(sum(values), sum(v * v for v in values), len(values), Z)
    assert found == pytest.approx((2.5, 2.5 - 1.2652, 2.5 + 1.2652), abs=1e-4)
    assert mean(5, 25, 1, Z) == (5, -math.inf, math.inf)


def test_ratios_of_what_is_unknown_are_open() -> None:
    known, unknown = Interval(2.0, 1.9, 2.1), Interval(1.0, 0.0, math.inf)
    assert ratio(known, unknown) == pytest.approx((2, 0, math.inf))
    assert ratio(known, Interval(1.0, 1.0, 1.0)).low == pytest.approx(1.9)


def test_the_interval_of_a_ratio_holds_the_truth_as_often_as_it_says() -> None:
    draw, held = random.Random(3), 0
    for _ in range(400):
        sides = []
        for scale in (1.0, 1.3):
            values = [scale * draw.lognormvariate(0, 0.6) for _ in range(300)]
            sides.append(quantile(Counter(values), 0.95, Z))
        gap = ratio(sides[1], sides[0])
        held += gap.low <= 1.3 <= gap.high
    assert held / 400 > 0.93
