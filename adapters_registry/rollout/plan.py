"""The plan of a judged canary: its steps, and what is compared at each of them. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from adapters_registry.errors import InvalidCanary

MAX_STEPS = 20
MIN_EVERY_SECONDS, MAX_EVERY_SECONDS = 1.0, 7 * 24 * 3600.0
MAX_EXAMPLES = 1000
MAX_REQUESTS = 1_000_000
METRICS = ("exact_match", "rouge_l", "bleu", "json_valid")
"""Those of `loraplex evaluate` that answers alone decide."""


class Criterion(enum.StrEnum):
    """What is compared between the canary and the live version."""

    ERROR_RATE = "error_rate"
    FIRST_TOKEN_P95 = "first_token_p95"
    ANSWER_LENGTH = "answer_length"
    EVALUATION = "evaluation"


MARGINS = {
    Criterion.ERROR_RATE: 0.01,
    Criterion.FIRST_TOKEN_P95: 0.25,
    Criterion.ANSWER_LENGTH: 0.5,
    Criterion.EVALUATION: 0.02,
}
"""How much worse than the live version is accepted: of the error rate and the evaluation's metric
in absolute terms, of the time to the first token and the length as a share of the live version's.
"""


@dataclass(frozen=True)
class CanaryPlan:
    """Steps, each a share of the requests in per cent, and the judge's rules."""

    steps: tuple[int, ...] = (1, 10, 50, 100)
    every_seconds: float = 600.0
    """How long a step lasts at least."""
    judge: tuple[Criterion, ...] = (Criterion.ERROR_RATE, Criterion.FIRST_TOKEN_P95)
    min_requests: int = 100
    """So many requests each side needs before they are compared."""
    metric: str = "exact_match"
    """The metric of the evaluation, as `loraplex evaluate` has them."""
    margins: Mapping[Criterion, float] = field(default_factory=dict)
    """Replace those of `MARGINS`."""
    warm_seconds: float | None = None
    """How long the last step waits until servers have the version in memory. None: not at all."""

    def check(self, num_examples: int) -> None:
        """Raise `InvalidCanary` if there cannot be such a canary with so many examples."""
        rising = all(a < b for a, b in zip(self.steps, self.steps[1:], strict=False))
        if not 2 <= len(self.steps) <= MAX_STEPS or not rising or self.steps[0] < 1:
            raise InvalidCanary(f"give 2 to {MAX_STEPS} rising steps from 1 to 100", param="steps")
        if self.steps[-1] != 100:
            raise InvalidCanary("the last step must be 100, the promotion", param="steps")
        if not MIN_EVERY_SECONDS <= self.every_seconds <= MAX_EVERY_SECONDS:
            raise InvalidCanary("a step lasts 1 second to 7 days", param="every_seconds")
        if not self.judge or len(set(self.judge)) != len(self.judge):
            known = ", ".join(Criterion)
            raise InvalidCanary(f"judge by some of {known}, each once", param="judge")
        if not 1 <= self.min_requests <= MAX_REQUESTS:
            raise InvalidCanary(f"min_requests is 1 to {MAX_REQUESTS}", param="min_requests")
        if self.metric not in METRICS:
            raise InvalidCanary(f"metric is one of {', '.join(METRICS)}", param="metric")
        if any(not 0 <= margin <= 100 for margin in self.margins.values()):
            raise InvalidCanary("a margin is a number from 0 to 100", param="margins")
        if (Criterion.EVALUATION in self.judge) != bool(num_examples):
            raise InvalidCanary(
                "give the criterion 'evaluation' and held-out conversations (data, --data) "
                "together: one needs the other",
                param="data",
            )
        if num_examples > MAX_EXAMPLES:
            raise InvalidCanary(f"give at most {MAX_EXAMPLES} conversations", param="data")

    def margin(self, criterion: Criterion) -> float:
        """Return how much worse by a criterion is accepted."""
        return self.margins.get(criterion, MARGINS[criterion])

    def to_json(self) -> dict[str, Any]:
        """Return the plan as the database keeps it."""
        return {**asdict(self), "steps": list(self.steps), "judge": list(self.judge)}

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> CanaryPlan:
        """Return what `to_json` has kept."""
        margins = {Criterion(name): margin for name, margin in kept["margins"].items()}
        judge = tuple(Criterion(name) for name in kept["judge"])
        return cls(**{**kept, "steps": tuple(kept["steps"]), "judge": judge, "margins": margins})
