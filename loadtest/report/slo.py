"""Objectives such as 'ttft_p99<500ms,error_rate<0.1%', and whether a run meets them. Pure.

In an objective 'queue' is the time in the tester's own queue, and 'lag' is how late the tester was.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import Any

from loadtest.errors import LoadTestError
from loadtest.report.latencies import PERCENTILES

_TERM = re.compile(r"\s*([a-z0-9_]+)\s*(<=|>=|<|>)\s*([0-9.]+)\s*(us|ms|s|%|)\s*")
_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0}
_STATISTICS = (*PERCENTILES, "mean", "max")
_LATENCIES = tuple(f"{k}_{s}" for k in ("ttft", "gap", "tpot", "e2e", "queue") for s in _STATISTICS)
_LAGS = tuple(f"lag_{statistic}" for statistic in _STATISTICS)
_FIGURES = {
    "error_rate": ("requests", "error_rate"),
    "goodput": ("throughput", "good_share"),
    "requests_per_second": ("throughput", "requests_per_second"),
    "tokens_per_second": ("throughput", "output_tokens_per_second"),
}
NAMES = (*_LATENCIES, *_LAGS, *_FIGURES)


@dataclass(frozen=True)
class Objective:
    """One term. Times are in milliseconds, shares are fractions."""

    text: str
    name: str
    comparison: str
    limit: float

    def value(self, summary: dict[str, Any]) -> float | None:
        """Return the run's value, or None if it has none."""
        if self.name in _FIGURES:
            part, key = _FIGURES[self.name]
            return float(summary[part][key]) if summary["requests"]["total"] else None
        kind, _, statistic = self.name.partition("_")
        source = summary["tester"] if kind == "lag" else summary["latency"]["all"]
        value = source[kind].get(statistic)
        return None if value is None else float(value)

    def is_met(self, summary: dict[str, Any]) -> bool:
        """Return whether the run meets the objective. A run without a value doesn't."""
        value = self.value(summary)
        return value is not None and bool(_COMPARE[self.comparison](value, self.limit))


def parse_slo(text: str) -> list[Objective]:
    """Read comma-separated terms.

    Raises:
        LoadTestError: a term can't be read. The message says what can.
    """
    return [_parse(term) for term in text.split(",") if term.strip()]


def _parse(term: str) -> Objective:
    match = _TERM.fullmatch(term)
    if match is None:
        raise LoadTestError(f"objective {term.strip()!r}: write it like ttft_p99<500ms")
    name, comparison, number, unit = match.groups()
    if name not in NAMES:
        known = "KIND_STATISTIC with ttft, gap, tpot, e2e, queue, lag and " + ", ".join(_STATISTICS)
        raise LoadTestError(f"objective {name!r}: there are {known}; {', '.join(_FIGURES)}")
    is_time = name not in _FIGURES
    if is_time != (unit in _MILLISECONDS) or number.count(".") > 1:
        raise LoadTestError(
            f"objective {term.strip()!r}: give times in us, ms or s, others in % or without a unit"
        )
    factor = _MILLISECONDS[unit] if is_time else 0.01 if unit == "%" else 1.0
    return Objective(term.strip(), name, comparison, float(number) * factor)
