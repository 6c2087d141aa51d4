"""Sums a run up: latencies by group, throughput, errors, fairness, right answers. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from loadtest.outcome.golden import name_of
from loadtest.outcome.request_outcome import HUNG_UP, WRONG, Outcome
from loadtest.outcome.run_record import Run
from loadtest.plan.scenario import Goodput
from loadtest.report.latencies import Latencies
from loadtest.report.series import series

GROUPS: dict[str, Callable[[Outcome], str]] = {
    "tenant": lambda outcome: outcome.tenant,
    "adapter": lambda outcome: name_of(outcome.model),
    "tier": lambda outcome: outcome.tier,
}
LAG_MS = 5.0
LAG_SHARE = 0.05
"""The tester is the bottleneck if the P99 of its lag is more than both: this many milliseconds, and
this share of the median first-token time."""
BUSY_SHARE = 0.9
"""The tester is also the bottleneck if it takes this share of the one core that it can use."""


def counted(run: Run) -> list[Outcome]:
    """Return the requests that were due after the warm-up."""
    return [o for o in run.outcomes if o.due >= run.scenario.warmup_seconds]


def summarise(run: Run) -> dict[str, Any]:
    """Return the summary of a run, as JSON."""
    outcomes = counted(run)
    seconds = max(run.seconds - run.scenario.warmup_seconds, 1e-9)
    answered = [outcome for outcome in outcomes if outcome.ok]
    summary: dict[str, Any] = {
        "question": run.scenario.question,
        "url": run.url,
        "base": run.base,
        "began_at": run.began_at,
        "complete": run.complete,
        "seconds": round(seconds, 3),
        "scenario": run.scenario.model_dump(mode="json", exclude={"tenants": {"__all__": {"key"}}}),
        "requests": _counts(outcomes),
        "warmup": _counts([o for o in run.outcomes if o.due < run.scenario.warmup_seconds]),
        "errors": errors(outcomes),
        "throughput": _throughput(answered, seconds, run.scenario.goodput, _expected(outcomes)),
        "latency": {"all": latencies(answered)} | by_groups(answered),
        "fairness": fairness(outcomes),
        "truth": _truth(run),
        "churn": [vars(record) for record in run.churn],
        "server": _server(run),
    }
    summary["tester"] = _tester(run, outcomes, summary["latency"]["all"])
    return summary


def _counts(outcomes: list[Outcome]) -> dict[str, float]:
    total, failed = len(outcomes), sum(outcome.is_error for outcome in outcomes)
    return {
        "total": total,
        "ok": sum(outcome.ok for outcome in outcomes),
        "hung_up": sum(outcome.status == HUNG_UP for outcome in outcomes),
        "failed": failed,
        "error_rate": failed / total if total else 0.0,
    }


def _expected(outcomes: list[Outcome]) -> int:
    """Return how many requests wanted a whole answer."""
    return sum(outcome.status != HUNG_UP for outcome in outcomes)


def errors(outcomes: list[Outcome]) -> dict[str, dict[str, Any]]:
    """Return how often each kind of error occurred, with an example."""
    numbers = Counter(outcome.status for outcome in outcomes if outcome.is_error)
    examples = {o.status: f"{o.model}: {o.detail}"[:300] for o in reversed(outcomes) if o.is_error}
    return {kind: {"count": n, "example": examples[kind]} for kind, n in numbers.most_common()}


def latencies(outcomes: list[Outcome]) -> dict[str, dict[str, float]]:
    """Return the latencies of answered requests, in milliseconds."""
    kinds = {
        "ttft": Latencies(outcome.ttft for outcome in outcomes),
        "gap": Latencies(gap for outcome in outcomes for gap in outcome.gaps),
        "tpot": Latencies(outcome.tpot for outcome in outcomes),
        "e2e": Latencies(outcome.e2e for outcome in outcomes),
        "queue": Latencies(outcome.sent - outcome.woken for outcome in outcomes),
    }
    return {kind: values.summary() for kind, values in kinds.items()}


def by_groups(outcomes: list[Outcome]) -> dict[str, dict[str, Any]]:
    """Return latencies by tenant, adapter and tier."""
    found: dict[str, dict[str, Any]] = {}
    for group, key in GROUPS.items():
        members: dict[str, list[Outcome]] = defaultdict(list)
        for outcome in outcomes:
            if name := key(outcome):
                members[name].append(outcome)
        found[group] = {name: latencies(members[name]) for name in sorted(members)}
    return found


def _throughput(
    answered: list[Outcome], seconds: float, goodput: Goodput, total: int
) -> dict[str, float]:
    good = sum(is_good(outcome, goodput) for outcome in answered)
    return {
        "requests_per_second": len(answered) / seconds,
        "input_tokens_per_second": sum(o.tokens_in for o in answered) / seconds,
        "output_tokens_per_second": sum(o.tokens_out for o in answered) / seconds,
        "good_requests_per_second": good / seconds,
        "good_share": good / total if total else 0.0,
    }


def is_good(outcome: Outcome, goodput: Goodput) -> bool:
    """Return whether an answer is within all limits."""
    return all(
        limit is None or (value or 0.0) * 1000 <= limit
        for value, limit in (
            (outcome.ttft, goodput.ttft_ms),
            (outcome.tpot, goodput.tpot_ms),
            (outcome.e2e, goodput.e2e_ms),
        )
    )


def jain(values: Iterable[float]) -> float:
    """Return Jain's index (Jain, Chiu, Hawe 1984): 1 if all get the same, 1/n if one gets all."""
    known = list(values)
    squares = sum(value * value for value in known)
    return sum(known) ** 2 / (len(known) * squares) if squares else 1.0


def fairness(outcomes: list[Outcome]) -> dict[str, dict[str, float]]:
    """Return Jain's index over tenants, and over adapters.

    `delivered` compares the shares of their tokens that came, `speed` the tokens that came for each
    second of waiting.
    """
    found = {}
    for group in ("tenant", "adapter"):
        asked: Counter[str] = Counter()
        got: Counter[str] = Counter()
        waited: dict[str, float] = defaultdict(float)
        for outcome in outcomes:
            if outcome.status == HUNG_UP:
                continue
            name = GROUPS[group](outcome)
            asked[name] += outcome.asked_tokens
            got[name] += outcome.tokens_out if outcome.ok else 0
            waited[name] += outcome.e2e
        found[group] = {
            "delivered": round(jain(got[name] / asked[name] for name in asked), 4),
            "speed": round(jain(got[name] / waited[name] for name in asked if waited[name]), 4),
        }
    return found


def _truth(run: Run) -> dict[str, Any]:
    truth = run.truth
    wrong = Counter(o.status for o in run.outcomes if o.status in WRONG)
    return {
        "checked": sum(o.is_check and (o.ok or o.status in WRONG) for o in run.outcomes),
        "right": truth.num_right,
        "unchecked": truth.num_unchecked,
        **{kind: wrong[kind] for kind in WRONG},
        "versions": len(truth.golden),
        "tolerance": round(truth.tolerance, 4),
        "indistinguishable_pairs_share": round(truth.blind_share(), 4),
    }


def _tester(run: Run, outcomes: list[Outcome], latency: dict[str, Any]) -> dict[str, Any]:
    lag = Latencies(max(0.0, outcome.woken - outcome.due) for outcome in outcomes).summary()
    median = latency["ttft"].get("p50", 0.0)
    late = lag.get("p99", 0.0) > max(LAG_MS, LAG_SHARE * median)
    return {
        "lag": lag,
        "cpu_share": round(run.cpu_share, 3),
        "is_bottleneck": late or run.cpu_share > BUSY_SHARE,
    }


def _server(run: Run) -> dict[str, dict[str, float]]:
    found = {}
    for name, points in sorted(series(run.pages).items()):
        values = [value for _, value in points]
        if any(values):
            found[name] = {"first": values[0], "last": values[-1], "max": max(values)}
    return found
