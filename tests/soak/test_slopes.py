"""The rule by which a soak says that something grows."""

import numpy as np
import pytest

from tests.soak.slopes import MIN_SAMPLES, Bound, slope_of

TIMES = np.arange(0.0, 1800.0, 5.0)
BOUND = Bound(per_hour=40.0, in_all=16.0)


def noise(size: float) -> np.ndarray:
    return np.random.default_rng(1).normal(0, size, len(TIMES))


def test_what_only_swings_is_flat() -> None:
    slope = slope_of(TIMES, 500 + noise(20), BOUND)
    assert slope.is_flat
    assert abs(slope.per_hour) < 10


def test_a_leak_is_found_beside_noise() -> None:
    leak = 500 + TIMES * 60 / 3600 + noise(10)
    slope = slope_of(TIMES, leak, BOUND)
    assert slope.per_hour == pytest.approx(60, rel=0.1)
    assert slope.growth == pytest.approx(24, rel=0.1)
    assert slope.end > slope.start
    assert not slope.is_flat


def test_what_grows_in_the_warm_up_only_is_flat() -> None:
    filled = 500 - 300 * np.exp(-TIMES / 60)
    assert slope_of(TIMES, filled, BOUND).is_flat


def test_peaks_do_not_move_the_slope() -> None:
    values = 500 + noise(1)
    values[-20:] += 400
    assert slope_of(TIMES, values, BOUND).is_flat


def test_what_shrinks_is_flat() -> None:
    assert slope_of(TIMES, 500 - TIMES, BOUND).is_flat


def test_in_a_short_time_only_growth_counts_not_steepness() -> None:
    times = TIMES[:24]  # two minutes
    slope = slope_of(times, [500 + 0.1 * at for at in times], BOUND)
    assert slope.per_hour == pytest.approx(360)
    assert slope.is_flat, "it has grown by 10, which is noise"
    assert not slope_of(times, [500 + at for at in times], BOUND).is_flat


def test_too_few_samples_are_no_verdict() -> None:
    with pytest.raises(ValueError, match="too few"):
        slope_of(TIMES[:MIN_SAMPLES], [1.0] * MIN_SAMPLES, BOUND)
