"""The judge: it looks at the canaries that this server has claimed, and carries out its verdicts.

Everything it knows is in the database, so any server may go on where another one has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from adapters_registry.errors import InvalidTargets, RegistryError
from adapters_registry.names import LIVE
from adapters_registry.records.audit import SERVER, current_actor
from adapters_registry.records.catalog import AdapterRecord, Target
from adapters_registry.records.database import database_time
from adapters_registry.registry import Registry
from adapters_registry.rollout import canaries
from adapters_registry.rollout.arms import ArmCounts
from adapters_registry.rollout.canaries import CanaryRecord
from adapters_registry.rollout.examples import examples_of
from adapters_registry.rollout.judgement import Judgement, Verdict, judge
from adapters_registry.rollout.plan import Criterion
from adapters_registry.rollout.traffic import prune_traffic, read_traffic
from server.errors import APIError
from server.residency.leases import Leases
from server.rollout.evaluation import Ask, Busy, evaluate
from server.rollout.warm_promotions import WarmPromotions
from server.workers import Workers

log = logging.getLogger(__name__)

PRUNE_SECONDS = 3600.0
PAUSE_SECONDS = 10.0
"""After a failure of an evaluation or of a promotion, until it is tried again."""


class Judge:
    """Judges canaries on one server. Each is judged by one server at a time."""

    ask: Ask | None = None
    """Sends requests to the versions. Set once the app is put together."""

    def __init__(
        self,
        registry: Registry,
        leases: Leases,
        warm: WarmPromotions,
        workers: Workers,
        clock: Callable[[Session], datetime] = database_time,
    ) -> None:
        """`clock`: the time that all servers share."""
        self._registry, self._leases, self._warm = registry, leases, warm
        self._workers, self._clock = workers, clock
        self._evaluations: dict[int, asyncio.Task[None]] = {}
        self._promotions: dict[int, asyncio.Task[None]] = {}
        self._pruned_at: datetime | None = None

    @property
    def num_evaluations(self) -> int:
        """Return how many canaries' held-out conversations are being answered here."""
        return len(self._evaluations)

    async def tick(self) -> None:
        """Look at every canary that this server judges, or can claim. Cheap if there is none.

        Raises:
            SQLAlchemyError, RegistryError: the database does not answer now.
        """
        current_actor.set(SERVER)  # in whose name the audit trail records what follows
        at, claimed = await self._workers.run(self._claim)
        for canary in claimed:
            await self._look(canary, at)

    def _claim(self) -> tuple[datetime, list[CanaryRecord]]:
        """Return the time, and the canaries that this server judges: it can serve both versions."""
        with self._registry.session() as session:
            at = self._clock(session)
            if self._pruned_at is None or at - self._pruned_at > timedelta(seconds=PRUNE_SECONDS):
                prune_traffic(session)
                self._pruned_at = at
            found = [canary for canary in canaries.running(session) if self._serves(canary)]
            ids = [canary.id for canary in found]
            ours = canaries.claim(session, ids, self._registry.server_id, at)
        return at, [canary for canary in found if canary.id in ours]

    def _adapter(self, canary: CanaryRecord) -> AdapterRecord | None:
        return self._registry.catalog.adapters.get((canary.tenant, canary.name))

    def _serves(self, canary: CanaryRecord) -> bool:
        adapter = self._adapter(canary)
        return adapter is not None and {canary.number, canary.live_number} <= adapter.ready.keys()

    async def _look(self, canary: CanaryRecord, at: datetime) -> None:
        adapter = self._adapter(canary)
        if adapter is None or canary.id in self._promotions:
            return
        if adapter.live_revision != canary.revision:  # a server ended before it could record it
            if adapter.warming is None:
                await self._apply(canaries.settle, canary, at=at)
            return
        live, counts = await self._workers.run(self._read_counts, adapter, canary)
        if Criterion.EVALUATION in canary.plan.judge and canary.scores is None:
            self._begin_evaluation(canary, adapter)
        is_look = at >= canary.look_at
        judgement = judge(canary.plan, live, counts, canary.scores, is_look=is_look)
        await self._carry_out(canary, judgement, at)

    def _read_counts(
        self, adapter: AdapterRecord, canary: CanaryRecord
    ) -> tuple[ArmCounts, ArmCounts]:
        live, other = (adapter.ready[n].version_id for n in (canary.live_number, canary.number))
        with self._registry.session() as session:
            found = read_traffic(session, [live, other], canary.revision)
        return found[live], found[other]

    async def _carry_out(self, canary: CanaryRecord, judgement: Judgement, at: datetime) -> None:
        match judgement.verdict:
            case Verdict.ROLL_BACK:
                log.warning("%s: rolled back: %s", _name(canary), judgement.reason)
                await self._apply(canaries.roll_back, canary, judgement, at=at)
            case Verdict.GO_ON:
                is_last = canary.plan.steps[canary.step + 1] == 100
                if is_last and canary.plan.warm_seconds is not None:
                    self._promotions[canary.id] = self._start(
                        self._promotions, canary, self._promote_warm(canary, judgement)
                    )
                else:
                    await self._apply(canaries.advance, canary, judgement, at=at)
            case Verdict.HOLD if at >= canary.look_at and judgement.finding != canary.finding:
                log.info("%s holds: %s", _name(canary), judgement.reason)
                look_at = self._next_look(canary, judgement, at)
                await self._apply(canaries.hold, canary, judgement, look_at=look_at)
            case Verdict.HOLD:
                await self._workers.run(self._note, canary, judgement, at)

    def _next_look(self, canary: CanaryRecord, judgement: Judgement, at: datetime) -> datetime:
        """Return when a held step is judged again: after another step's time if in doubt.

        If something was missing, it is judged as soon as that is there.
        """
        every = timedelta(seconds=canary.plan.every_seconds)
        return at + every if judgement.finding == "doubt" else canary.look_at

    def _note(self, canary: CanaryRecord, judgement: Judgement, at: datetime) -> None:
        """Record the numbers of a look that changes nothing, for whoever watches."""
        values: dict[str, Any] = {}
        if judgement.evidence != canary.evidence:
            values["evidence"] = judgement.evidence
        if at >= canary.look_at:
            values["reason"] = judgement.reason
            values["look_at"] = self._next_look(canary, judgement, at)
        if values:
            with self._registry.session() as session:
                canaries.note(session, canary.id, self._registry.server_id, **values)

    async def _apply(
        self, operation: Callable[..., bool], canary: CanaryRecord, *args: Any, **named: Any
    ) -> None:
        """Carry out an operation of `canaries`, and what it means for the engine."""
        server_id = self._registry.server_id
        try:
            await self._workers.run(
                self._registry.apply, operation, canary.id, server_id, *args, **named
            )
        except InvalidTargets as error:
            log.warning("%s: %s", _name(canary), error)
        self._leases.follow(self._registry.catalog)

    async def _promote_warm(self, canary: CanaryRecord, judgement: Judgement) -> None:
        """Give the canary all requests once servers have it in memory."""
        assert canary.plan.warm_seconds is not None
        note = {"finding": judgement.finding, "reason": judgement.reason}
        await self._workers.run(self._write, canary, note | {"evidence": judgement.evidence})
        await self._warm.promote(
            canary.tenant,
            canary.name,
            LIVE,
            [Target(canary.number, 100)],
            wait_seconds=canary.plan.warm_seconds,
            action=canaries.PROMOTE,
        )

    def _begin_evaluation(self, canary: CanaryRecord, adapter: AdapterRecord) -> None:
        if canary.id not in self._evaluations and self.ask is not None:
            self._evaluations[canary.id] = self._start(
                self._evaluations, canary, self._evaluate(self.ask, canary, adapter)
            )

    async def _evaluate(self, ask: Ask, canary: CanaryRecord, adapter: AdapterRecord) -> None:
        kept = await self._workers.run(self._read_examples, canary)
        examples = examples_of(kept, canary.plan.metric)
        live, other = adapter.ready[canary.live_number], adapter.ready[canary.number]
        scores = await evaluate(ask, live, other, examples, canary.plan.metric)
        await self._workers.run(self._write, canary, {"scores": scores})

    def _read_examples(self, canary: CanaryRecord) -> list[dict[str, Any]]:
        with self._registry.session() as session:
            return canaries.read_examples(session, canary.id)

    def _write(self, canary: CanaryRecord, values: dict[str, Any]) -> None:
        with self._registry.session() as session:
            canaries.note(session, canary.id, self._registry.server_id, **values)

    def _start(
        self, tasks: dict[int, asyncio.Task[None]], canary: CanaryRecord, work: Any
    ) -> asyncio.Task[None]:
        """Run work beside the looks. If it fails, a look after a pause begins it again."""

        async def carry_out() -> None:
            try:
                await work
            except (APIError, RegistryError, SQLAlchemyError, Busy) as error:
                log.warning("%s: put off: %s", _name(canary), error)
                await asyncio.sleep(PAUSE_SECONDS)
            except Exception:
                log.exception("%s: put off", _name(canary))
                await asyncio.sleep(PAUSE_SECONDS)
            finally:
                tasks.pop(canary.id, None)

        return asyncio.create_task(carry_out())


def _name(canary: CanaryRecord) -> str:
    return f"canary {canary.tenant}/{canary.name}@{canary.number}"
