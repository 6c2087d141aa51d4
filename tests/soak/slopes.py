"""Does a series grow? The Theil-Sen slope after a warm-up, and a verdict that can fail. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import ArrayLike

WARM_UP = 0.2
"""The share of the samples at the beginning that isn't judged: caches and pools fill then."""
HOUR_SECONDS = 3600.0
MIN_SAMPLES = 5


@dataclass(frozen=True)
class Bound:
    """How much a series may grow."""

    per_hour: float
    in_all: float
    """Growth of no more than this over the judged time is noise, however steep."""


@dataclass(frozen=True)
class Slope:
    """What a series did after the warm-up."""

    start: float
    end: float
    """Medians of the first and of the last tenth."""
    per_hour: float
    growth: float
    """The slope times the judged time."""
    is_flat: bool


def slope_of(times: ArrayLike, values: ArrayLike, bound: Bound) -> Slope:
    """Judge a series by its slope. It grows if both the slope and the growth are over the bound.

    The Theil-Sen slope is the median of the slopes of all pairs of samples, so single peaks don't
    move it. `times` are in seconds.

    Raises:
        ValueError: there are fewer than `MIN_SAMPLES` samples after the warm-up.
    """
    at, seen = np.asarray(times, float), np.asarray(values, float)
    first = int(len(at) * WARM_UP)
    at, seen = at[first:], seen[first:]
    if len(at) < MIN_SAMPLES:
        raise ValueError(f"{len(at)} samples are too few to judge a slope: soak for longer")
    earlier, later = np.triu_indices(len(at), 1)
    slopes = (seen[later] - seen[earlier]) / (at[later] - at[earlier])
    per_second = float(np.median(slopes))
    growth = per_second * float(at[-1] - at[0])
    per_hour = per_second * HOUR_SECONDS
    tenth = max(1, len(seen) // 10)
    return Slope(
        start=float(median(seen[:tenth])),
        end=float(median(seen[-tenth:])),
        per_hour=per_hour,
        growth=growth,
        is_flat=per_hour <= bound.per_hour or growth <= bound.in_all,
    )
