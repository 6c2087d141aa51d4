"""Which load to try next, to find the highest that meets its objectives. Pure."""

from __future__ import annotations

from dataclasses import dataclass

GROWTH = 2.0


@dataclass(frozen=True)
class Trial:
    """A load that was tried."""

    load: float
    passed: bool


def highest_passed(trials: list[Trial]) -> float | None:
    """Return the highest load that passed below the lowest that failed, or None without one."""
    failed = min((t.load for t in trials if not t.passed), default=float("inf"))
    return max((t.load for t in trials if t.passed and t.load < failed), default=None)


def next_load(trials: list[Trial], start: float, precision: float, *, whole: bool) -> float | None:
    """Return the next load to try, or None when the highest is known.

    The load is doubled until one fails, or halved until one passes, and then bisected until the
    relative width is at most `precision`. `whole` loads are numbers of clients.
    """
    if not trials:
        return start
    low = highest_passed(trials)
    high = min((t.load for t in trials if not t.passed), default=None)
    if high is None:
        return (low or start) * GROWTH
    if low is None:
        lower = high / GROWTH
        return None if (whole and high <= 1) or lower < start / 1000 else _whole(lower, whole)
    if high / low <= 1 + precision or (whole and high - low <= 1):
        return None
    return _whole((low + high) / 2, whole)


def _whole(load: float, whole: bool) -> float:
    return float(max(1, int(load))) if whole else load
