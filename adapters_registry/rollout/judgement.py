"""Judges a canary: is it worse than the live version, or does it go on? Pure.

A step is judged when its time is over, with intervals of 95 %. Before that it is looked at again
and again, so only what is certain to 99.9 % counts then (the rule of Haybittle, 1971, and Peto et
al., 1976, for looks at a trial that goes on).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from adapters_registry.rollout import intervals
from adapters_registry.rollout.arms import ArmCounts
from adapters_registry.rollout.intervals import Interval
from adapters_registry.rollout.plan import CanaryPlan, Criterion

LOOK_Z = NormalDist().inv_cdf(1 - 0.05 / 2)
INTERIM_Z = NormalDist().inv_cdf(1 - 0.001 / 2)


class Verdict(enum.StrEnum):
    """What is done with the canary."""

    GO_ON = "go on"
    HOLD = "hold"
    ROLL_BACK = "roll back"


@dataclass(frozen=True)
class Comparison:
    """Both sides by one criterion."""

    criterion: Criterion
    live: Interval
    canary: Interval
    gap: Interval
    """The difference of both, or the ratio of times and lengths."""
    is_worse: bool
    """Whether the canary is certain to be worse by more than the margin."""
    is_doubtful: bool
    """Whether it looks like that, but is not certain."""
    in_words: str

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as the database and the API have it."""
        return {
            "criterion": self.criterion.value,
            "live": _finite(self.live.value),
            "canary": _finite(self.canary.value),
            "gap": _finite(self.gap.value),
            "low": _finite(self.gap.low),
            "high": _finite(self.gap.high),
            "worse": self.is_worse,
            "doubtful": self.is_doubtful,
            "in_words": self.in_words,
        }


@dataclass(frozen=True)
class Judgement:
    """A verdict with its reason."""

    verdict: Verdict
    finding: str
    """What was found, as a code: `worse`, `doubt`, `traffic`, `evaluation`, `measuring`, `well`."""
    reason: str
    evidence: dict[str, Any]


def judge(
    plan: CanaryPlan,
    live: ArmCounts,
    canary: ArmCounts,
    scores: Mapping[str, Any] | None,
    *,
    is_look: bool,
) -> Judgement:
    """Compare both sides of a split.

    `scores` is the evaluation's result, None if there is none yet. `is_look` says that the step's
    time is over. Before, a canary can only be held or rolled back.
    """
    z = LOOK_Z if is_look else INTERIM_Z
    by_traffic = [c for c in plan.judge if c is not Criterion.EVALUATION]
    comparisons = [_compare(criterion, plan, live, canary, z) for criterion in by_traffic]
    enough: dict[Criterion, bool] = {
        c: min(_count(c, a) for a in (live, canary)) >= plan.min_requests for c in by_traffic
    }
    worse = [c for c in comparisons if c.is_worse and enough[c.criterion]]
    if scores is not None and Criterion.EVALUATION in plan.judge:
        evaluation = _compare_scores(plan, scores)
        comparisons.append(evaluation)
        worse += [evaluation] if evaluation.is_worse else []
    evidence = {
        "live_requests": live.requests,
        "canary_requests": canary.requests,
        "comparisons": [comparison.to_json() for comparison in comparisons],
    }

    def found(verdict: Verdict, finding: str, reason: str) -> Judgement:
        return Judgement(verdict, finding, reason, evidence)

    if worse:
        return found(Verdict.ROLL_BACK, "worse", _in_words(worse))
    if not is_look:
        return found(Verdict.HOLD, "measuring", "the step's time is not over")
    if not all(enough.values()):
        return found(
            Verdict.HOLD,
            "traffic",
            f"too little traffic: {canary.answers} answers and {canary.errors} errors of the "
            f"canary, {live.answers} and {live.errors} of the live version, and each needs "
            f"{plan.min_requests}",
        )
    if Criterion.EVALUATION in plan.judge and scores is None:
        return found(Verdict.HOLD, "evaluation", "the held-out data is still being answered")
    if doubtful := [c for c in comparisons if c.is_doubtful]:
        return found(Verdict.HOLD, "doubt", f"perhaps worse: {_in_words(doubtful)}")
    return found(Verdict.GO_ON, "well", f"no worse: {_in_words(comparisons)}")


def _count(criterion: Criterion, arm: ArmCounts) -> int:
    """Return how many requests of one side say something about a criterion."""
    return arm.requests if criterion is Criterion.ERROR_RATE else arm.answers


def _compare(
    criterion: Criterion, plan: CanaryPlan, live: ArmCounts, canary: ArmCounts, z: float
) -> Comparison:
    margin = plan.margin(criterion)
    if criterion is Criterion.ERROR_RATE:
        one, other = (intervals.proportion(a.errors, a.requests, z) for a in (canary, live))
        gap = intervals.difference(one, other)
        words = f"{one.value:.1%} of the canary's requests failed, {other.value:.1%} of live's"
        worse, doubtful = gap.low > margin, gap.value > margin
        spread = f"({gap.low:+.1%} to {gap.high:+.1%})"
    elif criterion is Criterion.FIRST_TOKEN_P95:
        one, other = (intervals.quantile(a.first_token_seconds, 0.95, z) for a in (canary, live))
        gap = intervals.ratio(one, other) if one.value and other.value else _UNKNOWN
        words = f"the P95 of the first token is {one.value:.3g} s, live's {other.value:.3g} s"
        worse, doubtful = gap.low > 1 + margin, gap.value > 1 + margin
        spread = _times(gap)
    else:
        one, other = (
            intervals.mean(a.tokens, a.tokens_squared, a.answers, z) for a in (canary, live)
        )
        gap = intervals.ratio(one, other) if one.value and other.value else _UNKNOWN
        words = f"an answer has {one.value:.1f} tokens, live's {other.value:.1f}"
        most, least = 1 + margin, 1 / (1 + margin)
        worse = gap.low > most or gap.high < least
        doubtful = not least <= gap.value <= most
        spread = _times(gap)
    return Comparison(
        criterion, other, one, gap, worse, doubtful and not worse, f"{words} {spread}"
    )


_UNKNOWN = Interval(1.0, 0.0, math.inf)
"""The ratio of two estimates, one of which has no values."""


def _compare_scores(plan: CanaryPlan, scores: Mapping[str, Any]) -> Comparison:
    """Compare by the evaluation, whose differences are the canary's mean minus the live one's."""
    metric, margin = plan.metric, plan.margin(Criterion.EVALUATION)
    gap = Interval(*(scores["differences"][metric][key] for key in ("mean", "low", "high")))
    one, other = scores["canary"][metric], scores["live"][metric]
    significant = gap.high < 0
    worse = significant and gap.value < -margin
    words = (
        f"{metric} on {scores['num_examples']} held-out conversations is {one:.3f}, live's "
        f"{other:.3f} ({gap.low:+.3f} to {gap.high:+.3f})"
    )
    return Comparison(
        Criterion.EVALUATION,
        Interval(other, other, other),
        Interval(one, one, one),
        gap,
        worse,
        gap.value < -margin and not worse,
        words,
    )


def _times(gap: Interval) -> str:
    high = f"{gap.high:.2f}" if gap.high < math.inf else "any"
    return f"({gap.low:.2f} to {high} times)"


def _in_words(comparisons: Sequence[Comparison]) -> str:
    return "; ".join(comparison.in_words for comparison in comparisons)


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
