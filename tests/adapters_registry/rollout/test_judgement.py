"""Which evidence makes a canary go on, hold, or go back."""

from __future__ import annotations

import random
from typing import Any

import pytest

from adapters_registry.errors import InvalidCanary
from adapters_registry.rollout.arms import ArmCounts
from adapters_registry.rollout.judgement import Judgement, Verdict, judge
from adapters_registry.rollout.plan import CanaryPlan, Criterion

ALL = (Criterion.ERROR_RATE, Criterion.FIRST_TOKEN_P95, Criterion.ANSWER_LENGTH)


def arm(
    requests: int, *, errors: int = 0, seconds: float = 0.1, tokens: float = 40, seed: int = 0
) -> ArmCounts:
    """Requests with times and lengths that spread as real ones do."""
    draw, counts = random.Random(seed), ArmCounts()
    for number in range(requests):
        counts.add(
            failed=number < errors,
            tokens=round(tokens * draw.lognormvariate(0, 0.5)),
            first_token=seconds * draw.lognormvariate(0, 0.4),
        )
    return counts


def judged(live: ArmCounts, canary: ArmCounts, is_look: bool = True, **plan: Any) -> Judgement:
    return judge(CanaryPlan(judge=ALL, **plan), live, canary, None, is_look=is_look)


@pytest.mark.parametrize("seed", range(20))
def test_an_equal_version_goes_on(seed: int) -> None:
    for size in (400, 2000):
        found = judged(arm(9 * size, errors=9, seed=seed), arm(size, errors=1, seed=100 + seed))
        assert found.verdict is Verdict.GO_ON, found.reason


@pytest.mark.parametrize(
    ("worse", "criterion"),
    [
        ({"errors": 40}, "error_rate"),
        ({"seconds": 0.3}, "first_token_p95"),
        ({"tokens": 100}, "answer_length"),
        ({"tokens": 10}, "answer_length"),
    ],
)
@pytest.mark.parametrize("is_look", [True, False])
def test_a_worse_version_goes_back_even_before_its_time(
    worse: dict[str, Any], criterion: str, is_look: bool
) -> None:
    found = judged(arm(3000, seed=1), arm(300, seed=2, **worse), is_look)
    assert (found.verdict, found.finding) == (Verdict.ROLL_BACK, "worse")
    marked = [c["criterion"] for c in found.evidence["comparisons"] if c["worse"]]
    assert marked == [criterion]


def test_with_too_few_requests_it_holds_and_says_so() -> None:
    found = judged(arm(3000), arm(99, errors=99))
    assert (found.verdict, found.finding) == (Verdict.HOLD, "traffic")
    assert "0 answers and 99 errors of the canary" in found.reason
    assert "needs 100" in found.reason


def test_a_canary_that_only_fails_goes_back_though_it_has_no_answers() -> None:
    assert judged(arm(3000), arm(100, errors=100)).verdict is Verdict.ROLL_BACK


def test_without_the_error_rate_failures_are_too_few_answers() -> None:
    plan = CanaryPlan(judge=(Criterion.FIRST_TOKEN_P95,))
    found = judge(plan, arm(3000), arm(500, errors=500), None, is_look=True)
    assert found.finding == "traffic"


def test_what_looks_worse_without_certainty_holds() -> None:
    found = judged(arm(150, errors=1), arm(150, errors=5, seed=1))
    assert (found.verdict, found.finding) == (Verdict.HOLD, "doubt")
    assert found.reason.startswith("perhaps worse: 3.3% of the canary's requests failed")


def test_before_its_time_only_the_certain_counts() -> None:
    live, canary = arm(2000, errors=20), arm(200, errors=9, seed=1)
    assert judged(live, canary, is_look=True).verdict is Verdict.ROLL_BACK
    assert judged(live, canary, is_look=False).finding == "measuring"


def test_a_margin_says_how_much_worse_is_accepted() -> None:
    live, canary = arm(3000), arm(300, errors=40, seed=1)
    margins = {Criterion.ERROR_RATE: 0.2}
    assert judged(live, canary, margins=margins).verdict is Verdict.GO_ON


def scores(mean: float, low: float, high: float) -> dict[str, Any]:
    return {
        "num_examples": 50,
        "live": {"exact_match": 0.8},
        "canary": {"exact_match": 0.8 + mean},
        "differences": {"exact_match": {"mean": mean, "low": low, "high": high}},
    }


@pytest.mark.parametrize(
    ("found", "verdict", "finding"),
    [
        (None, Verdict.HOLD, "evaluation"),
        (scores(-0.4, -0.6, -0.2), Verdict.ROLL_BACK, "worse"),
        (scores(-0.1, -0.3, 0.1), Verdict.HOLD, "doubt"),
        (scores(-0.01, -0.1, 0.1), Verdict.GO_ON, "well"),
        (scores(0.0, 0.0, 0.0), Verdict.GO_ON, "well"),
        (scores(0.1, 0.05, 0.2), Verdict.GO_ON, "well"),
    ],
)
def test_held_out_data_alone(found: dict[str, Any] | None, verdict: Verdict, finding: str) -> None:
    plan = CanaryPlan(judge=(Criterion.EVALUATION,))
    judgement = judge(plan, ArmCounts(), ArmCounts(), found, is_look=True)
    assert (judgement.verdict, judgement.finding) == (verdict, finding)


def test_counts_of_servers_add_up_and_are_kept() -> None:
    one, other = arm(200, errors=3, seed=1), arm(100, seed=2)
    both = ArmCounts.of(one.to_json()) + ArmCounts.of(other.to_json())
    assert both.requests == 300
    assert both.errors == 3
    assert sum(both.first_tokens.values()) == 297
    assert both == one + other


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", (100,)),
        ("steps", (10, 10, 100)),
        ("steps", (0, 100)),
        ("steps", (10, 50)),
        ("every_seconds", 0.5),
        ("judge", ()),
        ("judge", (Criterion.ERROR_RATE, Criterion.ERROR_RATE)),
        ("min_requests", 0),
        ("margins", {Criterion.ERROR_RATE: -1.0}),
        ("metric", "loss"),
    ],
)
def test_plans_that_cannot_be(field: str, value: Any) -> None:
    with pytest.raises(InvalidCanary) as refused:
        CanaryPlan(**{field: value}).check(0)
    assert refused.value.param == field


def test_data_and_its_criterion_need_each_other() -> None:
    for judges, count in (((Criterion.EVALUATION,), 0), ((Criterion.ERROR_RATE,), 3)):
        with pytest.raises(InvalidCanary) as refused:
            CanaryPlan(judge=judges).check(count)
        assert refused.value.param == "data"


def test_a_plan_is_kept_as_it_is() -> None:
    plan = CanaryPlan(steps=(5, 100), judge=ALL, margins={Criterion.ERROR_RATE: 0.5})
    assert CanaryPlan.of(plan.to_json()) == plan
