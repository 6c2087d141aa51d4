"""Latencies in high dynamic range histograms: 1 µs to an hour, three significant digits."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

LARGEST_MICROSECONDS = 3_600_000_000
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p999": 99.9}


class Latencies:
    """Durations of one kind."""

    def __init__(self, seconds: Iterable[float | None]) -> None:
        """Record durations. None is left out."""
        self._histogram = HdrHistogram(1, LARGEST_MICROSECONDS, 3)
        known = np.array([s for s in seconds if s is not None], dtype=float)
        self._mean_seconds = float(known.mean()) if len(known) else 0.0
        micros = np.clip(np.rint(known * 1e6), 1, LARGEST_MICROSECONDS).astype(np.int64)
        # One call for all values of a bucket, because a call takes 20 µs.
        widths = _bucket_widths(micros)
        buckets = micros // widths * widths
        for value, count in zip(*np.unique(buckets, return_counts=True), strict=True):
            self._histogram.record_value(int(value), int(count))

    def __len__(self) -> int:
        return int(self._histogram.get_total_count())

    def summary(self) -> dict[str, float]:
        """Return count, mean, percentiles and maximum, in milliseconds."""
        if not len(self):
            return {"count": 0}
        micros = self._histogram.get_percentile_to_value_dict([*PERCENTILES.values(), 100.0])
        values = {name: micros[percentile] / 1000 for name, percentile in PERCENTILES.items()}
        values |= {"mean": self._mean_seconds * 1000, "max": micros[100.0] / 1000}
        return {"count": len(self)} | {name: round(value, 3) for name, value in values.items()}

    def encoded(self) -> str:
        """Return the histogram in HdrHistogram's compressed form, for other tools."""
        return bytes(self._histogram.encode()).decode()


def _bucket_widths(micros: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the width of the bucket of each value. Each power of two has 2,048 buckets."""
    exponents = np.floor(np.log2(np.maximum(micros, 1))).astype(np.int64)
    return np.asarray(2 ** np.maximum(0, exponents - 10), dtype=np.int64)
