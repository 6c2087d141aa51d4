"""Judged canaries: they begin here, and show how they do. The judge carries them out."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field

from adapters_registry.errors import NotFound
from adapters_registry.records.change import Change
from adapters_registry.records.idempotency import Idempotency
from adapters_registry.registry import Registry
from adapters_registry.rollout.canaries import CanaryRecord, latest, start
from adapters_registry.rollout.examples import examples_of
from adapters_registry.rollout.plan import MARGINS, MAX_EXAMPLES, CanaryPlan, Criterion
from adapters_registry.rollout.tables import CanaryState
from server.api.admin.idempotency import IdempotencyHeader, idempotency
from server.api.routes import Routes
from server.rollout.rollouts import Rollouts
from server.workers import Workers

DEFAULT = CanaryPlan()


class CanaryRequest(BaseModel):
    """A canary that is to be judged."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "version": 2,
                    "steps": [1, 10, 50, 100],
                    "every_seconds": 600,
                    "judge": ["error_rate", "first_token_p95"],
                }
            ]
        },
    )

    version: int = Field(description="The version that is to become live.", examples=[2])
    steps: list[int] = Field(
        list(DEFAULT.steps),
        description="The canary's share of the requests in per cent at each step. They rise, and "
        "the last one is 100, the promotion.",
    )
    every_seconds: float = Field(
        DEFAULT.every_seconds, description="How long each step lasts at least, in seconds."
    )
    judge: list[Criterion] | None = Field(
        None,
        description="What is compared with the live version. Default: error_rate and "
        "first_token_p95, and with `data` also evaluation.",
    )
    min_requests: int = Field(
        DEFAULT.min_requests,
        description="How many requests each side needs before they are compared. With fewer the "
        "canary holds.",
    )
    margins: dict[Criterion, float] = Field(
        default_factory=dict,
        description="How much worse is accepted, by criterion. error_rate and evaluation: the "
        "difference. first_token_p95 and answer_length: the share of the live version's value. "
        f"Default: {', '.join(f'{name.value} {margin}' for name, margin in MARGINS.items())}.",
    )
    metric: str = Field(
        DEFAULT.metric,
        description="By what the answers to `data` are scored: exact_match, rouge_l, bleu or "
        "json_valid.",
    )
    data: list[dict[str, Any]] = Field(
        default_factory=list,
        max_length=MAX_EXAMPLES,
        description="Held-out conversations: `messages` that end with the right answer, and "
        "`tools`, if there are any. Both versions answer them once.",
    )
    warm: bool = Field(
        False,
        description="The last step waits until every server that serves the adapter has the "
        "version in host memory, at most `LORAPLEX_WARM_SECONDS`.",
    )

    def plan(self, warm_seconds: float) -> CanaryPlan:
        """Return the plan. Raises `InvalidCanary` if there cannot be such a canary."""
        judge = DEFAULT.judge if self.judge is None else tuple(self.judge)
        if self.judge is None and self.data:
            judge += (Criterion.EVALUATION,)
        plan = CanaryPlan(
            steps=tuple(self.steps),
            every_seconds=self.every_seconds,
            judge=judge,
            min_requests=self.min_requests,
            metric=self.metric,
            margins=self.margins,
            warm_seconds=warm_seconds if self.warm else None,
        )
        plan.check(len(self.data))
        examples_of(self.data, self.metric)
        return plan


class ComparisonBody(BaseModel):
    """Both sides by one criterion."""

    criterion: Criterion
    live: float | None
    canary: float | None
    gap: float | None = Field(
        description="The canary's value minus the live version's; of first_token_p95 and "
        "answer_length their ratio."
    )
    low: float | None = Field(description="The lower bound of its interval; null if there is none.")
    high: float | None
    worse: bool = Field(description="Whether it is certainly worse by more than the margin.")
    doubtful: bool = Field(description="Whether it looks worse than that, without certainty.")
    in_words: str


class CanaryBody(BaseModel):
    """A judged canary."""

    version: int
    live: int = Field(description="The version that it is compared with.")
    state: CanaryState
    weight: int = Field(description="Its share of the requests in per cent, at its end the last.")
    steps: list[int]
    every_seconds: float
    judge: list[Criterion]
    min_requests: int
    metric: str
    step_at: datetime = Field(description="When the present step began.")
    look_at: datetime = Field(description="When it is judged next, or was to be.")
    finding: str = Field(
        description="What the last judgement found: `well`, `worse`, `doubt`, `traffic` (too "
        "little), `evaluation` (still runs), `moved` (somebody moved `live`). Empty before it."
    )
    reason: str = Field(description="The same in words, with the numbers.")
    live_requests: int
    canary_requests: int
    comparisons: list[ComparisonBody]
    created_at: datetime
    ended_at: datetime | None

    @classmethod
    def of(cls, canary: CanaryRecord) -> CanaryBody:
        """Return the body of a record."""
        plan, evidence = canary.plan, canary.evidence or {}
        return cls(
            version=canary.number,
            live=canary.live_number,
            state=canary.state,
            weight=canary.weight,
            steps=list(plan.steps),
            every_seconds=plan.every_seconds,
            judge=list(plan.judge),
            min_requests=plan.min_requests,
            metric=plan.metric,
            step_at=canary.step_at,
            look_at=canary.look_at,
            finding=canary.finding,
            reason=canary.reason,
            live_requests=evidence.get("live_requests", 0),
            canary_requests=evidence.get("canary_requests", 0),
            comparisons=[ComparisonBody(**each) for each in evidence.get("comparisons", [])],
            created_at=canary.created_at,
            ended_at=canary.ended_at,
        )


def router(registry: Registry, rollouts: Rollouts, warm_seconds: float, workers: Workers) -> Routes:
    """Return the routes. `warm_seconds`: how long the last step waits for servers at most."""
    routes = Routes(prefix="/adapters/{tenant}/{name}/canary", tags=["admin"])

    @routes.post("", status_code=201)
    async def begin(
        request: Request,
        tenant: str,
        name: str,
        body: CanaryRequest,
        idempotency_key: IdempotencyHeader = None,
    ) -> CanaryBody:
        """Begin a canary that is judged: it goes on by steps, holds, or is rolled back.

        Each step compares both versions. Any other change of `live` ends the judging, and the
        split then stays as that change left it.
        """
        key = idempotency(request, idempotency_key)
        operation = starting(rollouts, tenant, name, body, warm_seconds, key)
        return CanaryBody.of(await workers.run(registry.apply, operation))

    @routes.get("")
    async def show(tenant: str, name: str) -> CanaryBody:
        """Show the adapter's last judged canary, whether it runs or has ended."""
        registry.get_adapter(tenant, name)
        found = await workers.run(read_latest, registry, tenant, name)
        if found is None:
            raise NotFound(f"{tenant}/{name} has had no judged canary")
        return CanaryBody.of(found)

    return routes


def starting(
    rollouts: Rollouts,
    tenant: str,
    name: str,
    body: CanaryRequest,
    warm_seconds: float,
    key: Idempotency | None = None,
) -> Callable[[Change], CanaryRecord]:
    """Return the operation that begins a canary. Raises `InvalidCanary` if there can be none."""
    plan = body.plan(warm_seconds)

    def operation(change: Change) -> CanaryRecord:
        at = rollouts.clock(change.session)
        return start(change, tenant, name, body.version, plan, body.data, at=at, idempotency=key)

    return operation


def read_latest(registry: Registry, tenant: str, name: str) -> CanaryRecord | None:
    """Return an adapter's last judged canary, or None if there was none."""
    with registry.session() as session:
        return latest(session, tenant, name)
