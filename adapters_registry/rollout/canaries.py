"""Judged canaries: they begin, are claimed by one server, and go on, hold, or are rolled back.

A server claims a canary for `LEASE` and renews the lease while it judges. Each step first compares
the owner, in the transaction of the change, so a server that has lost its lease changes nothing
(as with verdicts, `adapters_registry/verdicts.py`). All of a canary's state is in the database:
another server, or the same one after a restart, goes on where it stands.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, delete, or_, select, update
from sqlalchemy.orm import Session, joinedload

from adapters_registry.errors import InvalidTargets, NotFound
from adapters_registry.names import LIVE
from adapters_registry.records.aliases import check_targets, find_alias, point
from adapters_registry.records.catalog import Target
from adapters_registry.records.change import Change
from adapters_registry.records.idempotency import (
    Idempotency,
    find_result,
    fingerprint_of,
    keep_result,
)
from adapters_registry.records.tables import Adapter
from adapters_registry.rollout.endings import end_judged
from adapters_registry.rollout.judgement import Judgement
from adapters_registry.rollout.plan import CanaryPlan
from adapters_registry.rollout.tables import CanaryState, JudgedCanary

LEASE = timedelta(seconds=30)
"""How long a server keeps a canary to itself if it does not renew the lease."""
KEPT = 20
"""How many judged canaries of an adapter are kept, with the last one."""
STEP, PROMOTE, ROLL_BACK = "canary.step", "canary.promote", "canary.rollback"
"""What the audit trail calls a judge's moves of `live`."""


@dataclass(frozen=True)
class CanaryRecord:
    """A judged canary, as the rest of the program sees it."""

    id: int
    tenant: str
    name: str
    number: int
    live_number: int
    plan: CanaryPlan
    state: CanaryState
    step: int
    revision: int
    step_at: datetime
    look_at: datetime
    finding: str
    reason: str
    evidence: dict[str, Any]
    scores: dict[str, Any] | None
    created_at: datetime
    ended_at: datetime | None

    @property
    def weight(self) -> int:
        """Return the share of the requests that the canary has, or had at its end, in per cent."""
        return self.plan.steps[self.step]


def record_of(row: JudgedCanary) -> CanaryRecord:
    """Return a row as a record. The row's adapter must be loaded."""
    return CanaryRecord(
        id=row.id,
        tenant=row.adapter.tenant,
        name=row.adapter.name,
        number=row.number,
        live_number=row.live_number,
        plan=CanaryPlan.of(row.plan),
        state=CanaryState(row.state),
        step=row.step,
        revision=row.revision,
        step_at=row.step_at,
        look_at=row.look_at,
        finding=row.finding,
        reason=row.reason,
        evidence=row.evidence,
        scores=row.scores,
        created_at=row.created_at,
        ended_at=row.ended_at,
    )


def start(
    change: Change,
    tenant: str,
    name: str,
    number: int,
    plan: CanaryPlan,
    examples: Sequence[dict[str, Any]],
    *,
    at: datetime,
    idempotency: Idempotency | None = None,
) -> CanaryRecord:
    """Begin a judged canary with its first step. It replaces one that runs.

    Raises:
        NotFound: there is no such adapter, or its bare name points nowhere.
        InvalidTargets: the version is not ready, or it is live already.
        KeyReused: the idempotency key came with another request before.
    """
    adapter = change.adapter(tenant, name)
    if idempotency:
        fingerprint = fingerprint_of("canary", tenant, name, number, plan.to_json(), list(examples))
        known = latest(change.session, tenant, name)
        if find_result(change, idempotency, fingerprint) and known:
            return known
        keep_result(change, idempotency, fingerprint)
    live = _live_beside(change, adapter, number)
    targets = _split(number, live, plan.steps[0])
    check_targets(change, adapter, [Target(*target) for target in targets])
    end_judged(change, adapter, "another judged canary was begun")
    _forget_old(change, adapter)
    row = JudgedCanary(
        adapter_id=adapter.id,
        number=number,
        live_number=live,
        plan=plan.to_json(),
        examples=list(examples),
        state=CanaryState.RUNNING,
        created_at=at,
    )
    shown = {
        "steps": list(plan.steps),
        "every_seconds": plan.every_seconds,
        "judge": [criterion.value for criterion in plan.judge],
        "beside": live,
    }
    change.log("canary.start", adapter, str(number), None, shown)
    _take_step(change, adapter, row, 0, at)
    change.session.add(row)
    change.session.flush()
    row.adapter = adapter
    return record_of(row)


def latest(session: Session, tenant: str, name: str) -> CanaryRecord | None:
    """Return an adapter's last judged canary in any state, or None."""
    query = (
        select(JudgedCanary)
        .join(JudgedCanary.adapter)
        .where(Adapter.tenant == tenant, Adapter.name == name, Adapter.deleted.is_(False))
        .order_by(JudgedCanary.id.desc())
        .limit(1)
    )
    row = session.scalar(query.options(joinedload(JudgedCanary.adapter)))
    return record_of(row) if row else None


def running(session: Session) -> list[CanaryRecord]:
    """Return the judged canaries that run, the oldest first."""
    query = select(JudgedCanary).where(JudgedCanary.state == CanaryState.RUNNING)
    rows = session.scalars(
        query.order_by(JudgedCanary.id).options(joinedload(JudgedCanary.adapter))
    )
    return [record_of(row) for row in rows]


def claim(session: Session, ids: Collection[int], server_id: str, at: datetime) -> set[int]:
    """Claim canaries that no other server judges, or renew the lease. Returns this server's."""
    if not ids:
        return set()
    mine = JudgedCanary.claimed_by == server_id
    due = or_(
        JudgedCanary.claimed_by.is_(None),
        JudgedCanary.claimed_until < at,
        and_(mine, JudgedCanary.claimed_until < at + LEASE / 2),
    )
    named = JudgedCanary.id.in_(ids), JudgedCanary.state == CanaryState.RUNNING
    values = {"claimed_by": server_id, "claimed_until": at + LEASE}
    if session.scalar(select(JudgedCanary.id).where(*named, due).limit(1)):
        session.execute(update(JudgedCanary).where(*named, due).values(**values))
    return set(session.scalars(select(JudgedCanary.id).where(*named, mine)))


def read_examples(session: Session, canary_id: int) -> list[dict[str, Any]]:
    """Return a canary's held-out conversations."""
    found = session.scalar(select(JudgedCanary.examples).where(JudgedCanary.id == canary_id))
    return found or []


def note(session: Session, canary_id: int, server_id: str, **values: Any) -> None:
    """Record what the judge has found out. This is not a change of the registry."""
    session.execute(update(JudgedCanary).where(*_owned(canary_id, server_id)).values(**values))


def advance(
    change: Change, canary_id: int, server_id: str, judgement: Judgement, *, at: datetime
) -> bool:
    """Take a canary's next step; the last one is the promotion. Returns False if it isn't ours."""
    row = _own(change, canary_id, server_id)
    if row is None:
        return False
    before, weight = {"weight": row.plan["steps"][row.step]}, row.plan["steps"][row.step + 1]
    after = {"weight": weight, "reason": judgement.reason}
    change.log("canary.go_on", row.adapter, str(row.number), before, after)
    _find(row, judgement)
    _take_step(change, row.adapter, row, row.step + 1, at)
    return True


def roll_back(
    change: Change, canary_id: int, server_id: str, judgement: Judgement, *, at: datetime
) -> bool:
    """Give all requests to the live version again. Returns False if the canary isn't ours."""
    row = _own(change, canary_id, server_id)
    if row is None:
        return False
    _find(row, judgement)
    point(change, row.adapter, LIVE, [[row.live_number, 100]], ROLL_BACK)
    _end(change, row, CanaryState.ROLLED_BACK, at)
    return True


def hold(
    change: Change, canary_id: int, server_id: str, judgement: Judgement, *, look_at: datetime
) -> bool:
    """Leave a canary where it is, with the reason. Returns False if it isn't ours."""
    row = _own(change, canary_id, server_id)
    if row is None:
        return False
    _find(row, judgement)
    row.look_at = look_at
    after = {"weight": row.plan["steps"][row.step], "reason": judgement.reason}
    change.log("canary.hold", row.adapter, str(row.number), None, after)
    return True


def settle(change: Change, canary_id: int, server_id: str, *, at: datetime) -> bool:
    """Record that a canary was promoted, if `live` says so. Returns False if it isn't ours."""
    row = _own(change, canary_id, server_id)
    alias = find_alias(row.adapter, LIVE) if row else None
    if row is None or alias is None or alias.targets != [[row.number, 100]]:
        return False
    steps = row.plan["steps"]
    before, after = {"weight": steps[row.step]}, {"weight": steps[-1], "reason": row.reason}
    change.log("canary.go_on", row.adapter, str(row.number), before, after)
    row.step = len(steps) - 1
    row.revision = row.adapter.live_revision
    _end(change, row, CanaryState.PROMOTED, at)
    return True


def _forget_old(change: Change, adapter: Adapter) -> None:
    of_adapter = JudgedCanary.adapter_id == adapter.id
    newest = select(JudgedCanary.id).where(of_adapter).order_by(JudgedCanary.id.desc())
    kept = list(change.session.scalars(newest.limit(KEPT - 1)))
    change.session.execute(delete(JudgedCanary).where(of_adapter, JudgedCanary.id.not_in(kept)))


def _take_step(
    change: Change, adapter: Adapter, row: JudgedCanary, step: int, at: datetime
) -> None:
    weight = row.plan["steps"][step]
    targets = _split(row.number, row.live_number, weight)
    point(change, adapter, LIVE, targets, PROMOTE if weight == 100 else STEP)
    row.step, row.revision, row.step_at = step, adapter.live_revision, at
    row.look_at = at + timedelta(seconds=row.plan["every_seconds"])
    if weight == 100:
        _end(change, row, CanaryState.PROMOTED, at)


def _end(change: Change, row: JudgedCanary, state: CanaryState, at: datetime) -> None:
    row.state, row.ended_at, row.claimed_by, row.claimed_until = state, at, None, None
    row.examples = []
    after = {"state": state, "reason": row.reason}
    before = {"state": CanaryState.RUNNING}
    change.log("canary.end", row.adapter, str(row.number), before, after)


def _find(row: JudgedCanary, judgement: Judgement) -> None:
    row.finding, row.reason = judgement.finding, judgement.reason
    row.evidence = judgement.evidence


def _split(number: int, live: int, weight: int) -> list[list[int]]:
    # The canary comes first, so that its conversations stay with it when its share grows.
    return [target for target in ([number, weight], [live, 100 - weight]) if target[1]]


def _live_beside(change: Change, adapter: Adapter, number: int) -> int:
    """Return the version with which a canary is compared: the main one of the others in `live`.

    If a judged canary runs, it is the version that this one is compared with, whatever its share:
    the canary itself has not proved anything yet.
    """
    alias = find_alias(adapter, LIVE)
    if alias is None:
        raise NotFound(f"{adapter.tenant}/{adapter.name} has no live version to compare with")
    others = [target for target in alias.targets if target[0] != number]
    is_running = JudgedCanary.state == CanaryState.RUNNING
    proved = change.session.scalar(
        select(JudgedCanary.live_number)
        .where(JudgedCanary.adapter_id == adapter.id, is_running)
        .limit(1)
    )
    if not others or proved == number:
        raise InvalidTargets(f"version {number} is live already: there is nothing to compare with")
    if proved is not None:
        return proved
    return int(max(others, key=lambda target: target[1])[0])


def _owned(canary_id: int, server_id: str) -> tuple[Any, ...]:
    return (
        JudgedCanary.id == canary_id,
        JudgedCanary.state == CanaryState.RUNNING,
        JudgedCanary.claimed_by == server_id,
    )


def _own(change: Change, canary_id: int, server_id: str) -> JudgedCanary | None:
    """Return the row of a canary that this server judges, and mark its adapter as changed."""
    query = select(JudgedCanary).where(*_owned(canary_id, server_id))
    row = change.session.scalar(query.options(joinedload(JudgedCanary.adapter)))
    if row is not None:
        row.adapter.epoch = change.epoch
    return row
