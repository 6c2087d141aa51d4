"""A judged canary's steps in the database; on SQLite and PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from adapters_registry.errors import InvalidTargets, NotFound
from adapters_registry.records.aliases import point, point_alias, roll_back
from adapters_registry.records.catalog import Target
from adapters_registry.records.idempotency import Idempotency
from adapters_registry.records.retirement import delete_adapter, retire_version
from adapters_registry.registry import Registry
from adapters_registry.rollout import canaries
from adapters_registry.rollout.arms import ArmCounts
from adapters_registry.rollout.canaries import LEASE, CanaryRecord
from adapters_registry.rollout.judgement import Judgement, Verdict
from adapters_registry.rollout.plan import CanaryPlan
from adapters_registry.rollout.tables import CanaryState, JudgedCanary
from adapters_registry.rollout.traffic import prune_traffic, read_traffic, save_traffic
from tests.adapters_registry.adapters import register
from tests.tiny import AdapterFactory

AT = datetime(2026, 5, 1, tzinfo=UTC)
PLAN = CanaryPlan(steps=(10, 50, 100), every_seconds=60)
WELL = Judgement(Verdict.GO_ON, "well", "no worse", {})
WORSE = Judgement(Verdict.ROLL_BACK, "worse", "it fails", {"canary_requests": 7})


@pytest.fixture
def home(registry: Registry, make_adapter: AdapterFactory) -> Registry:
    """A registry whose adapter `home` has three ready versions; the first is live."""
    for seed in (1, 2, 3):
        register(registry, make_adapter(seed=seed))
    return registry


def begin(registry: Registry, number: int = 2, **more: Any) -> CanaryRecord:
    examples: list[dict[str, Any]] = []
    return registry.apply(canaries.start, "default", "home", number, PLAN, examples, at=AT, **more)


def claimed(registry: Registry, canary: CanaryRecord, server: str, at: datetime = AT) -> bool:
    with registry.session() as session:
        return canary.id in canaries.claim(session, [canary.id], server, at)


def now_is(registry: Registry) -> CanaryRecord:
    with registry.session() as session:
        found = canaries.latest(session, "default", "home")
    assert found is not None
    return found


def targets(registry: Registry) -> list[Target]:
    return list(registry.get_adapter("default", "home").aliases["live"].targets)


def actions(registry: Registry) -> list[str]:
    return [entry.action for entry in reversed(registry.audit(adapter="default/home"))]


def test_it_goes_through_its_steps(home: Registry) -> None:
    canary = begin(home)
    assert targets(home) == [(2, 10), (1, 90)]
    assert canary.look_at == AT + timedelta(seconds=60)
    assert claimed(home, canary, "a")
    later = AT + timedelta(seconds=70)
    assert home.apply(canaries.advance, canary.id, "a", WELL, at=later)
    assert targets(home) == [(2, 50), (1, 50)]
    second = now_is(home)
    assert (second.step, second.step_at, second.weight) == (1, later, 50)
    assert second.revision == home.get_adapter("default", "home").live_revision > canary.revision
    assert home.apply(canaries.advance, canary.id, "a", WELL, at=later)
    assert targets(home) == [(2, 100)]
    assert now_is(home).state is CanaryState.PROMOTED
    assert not claimed(home, canary, "a"), "it is over"
    assert [a for a in actions(home) if a.startswith("canary.")] == [
        "canary.start",
        "canary.step",
        "canary.go_on",
        "canary.step",
        "canary.go_on",
        "canary.promote",
        "canary.end",
    ]
    home.apply(roll_back, "default", "home")
    assert targets(home) == [(1, 100)], "one rollback undoes all of its steps"


def test_it_goes_back_with_the_reason(home: Registry) -> None:
    canary = begin(home)
    claimed(home, canary, "a")
    assert home.apply(canaries.roll_back, canary.id, "a", WORSE, at=AT)
    assert targets(home) == [(1, 100)]
    found = now_is(home)
    assert (found.state, found.reason, found.evidence) == (
        CanaryState.ROLLED_BACK,
        "it fails",
        {"canary_requests": 7},
    )
    (end,) = home.audit(adapter="default/home", action="canary.end")
    assert end.after == {"state": "rolled back", "reason": "it fails"}


def test_one_server_judges_it_until_its_lease_is_over(home: Registry) -> None:
    canary = begin(home)
    assert claimed(home, canary, "a")
    assert not claimed(home, canary, "b")
    assert not home.apply(canaries.advance, canary.id, "b", WELL, at=AT)
    assert targets(home) == [(2, 10), (1, 90)]
    assert claimed(home, canary, "a", AT + LEASE * 0.9), "it renews the lease"
    assert not claimed(home, canary, "b", AT + LEASE * 1.5)
    assert claimed(home, canary, "b", AT + LEASE * 2)
    assert not home.apply(canaries.roll_back, canary.id, "a", WORSE, at=AT)
    assert home.apply(canaries.hold, canary.id, "b", WELL, look_at=AT)


@pytest.mark.parametrize("how", ["promote", "split", "rollback", "retire", "delete", "again"])
def test_another_change_of_live_ends_it(home: Registry, how: str) -> None:
    canary = begin(home)
    claimed(home, canary, "a")
    match how:
        case "promote":
            home.apply(point_alias, "default", "home", "live", [Target(3, 100)])
        case "split":
            home.apply(point_alias, "default", "home", "live", [Target(2, 20), Target(1, 80)])
        case "rollback":
            home.apply(roll_back, "default", "home")
        case "retire":
            home.apply(retire_version, "default", "home", 2, force=True)
        case "delete":
            home.apply(delete_adapter, "default", "home", force=True)
        case "again":
            begin(home, 3)
    (end,) = home.audit(adapter="default/home", action="canary.end")
    assert end.subject == "default/home@2"
    assert end.after is not None
    assert end.after["state"] == "ended"
    assert "another" in end.after["reason"]
    for operation in (canaries.advance, canaries.roll_back):
        assert not home.apply(operation, canary.id, "a", WELL, at=AT)


def test_one_that_replaces_another_is_compared_with_what_was_live(home: Registry) -> None:
    """The canary before it may have the larger share, and has not proved anything."""
    canary = begin(home)
    claimed(home, canary, "a")
    assert home.apply(canaries.advance, canary.id, "a", WELL, at=AT)
    assert targets(home) == [Target(2, 50), Target(1, 50)]
    with pytest.raises(InvalidTargets, match="version 1 is live already"):
        begin(home, 1)
    assert begin(home, 3).live_number == 1
    assert targets(home) == [Target(3, 10), Target(1, 90)]


def test_another_alias_is_no_affair_of_it(home: Registry) -> None:
    begin(home)
    home.apply(point_alias, "default", "home", "stable", [Target(1, 100)])
    assert now_is(home).state is CanaryState.RUNNING


def test_what_cannot_be_judged(home: Registry) -> None:
    with pytest.raises(InvalidTargets, match="live already"):
        begin(home, 1)
    with pytest.raises(InvalidTargets, match="unknown"):
        begin(home, 9)
    with pytest.raises(NotFound):
        home.apply(canaries.start, "default", "none", 2, PLAN, [], at=AT)


def test_an_idempotency_key_begins_it_once(home: Registry) -> None:
    key = Idempotency("me", "k")
    first = begin(home, idempotency=key)
    assert begin(home, idempotency=key).id == first.id
    assert actions(home).count("canary.start") == 1


def test_what_has_ended_takes_little_room(home: Registry) -> None:
    data: list[dict[str, Any]] = [{"messages": []}]
    for _ in range(canaries.KEPT + 5):
        home.apply(canaries.start, "default", "home", 2, PLAN, data, at=AT)
    with home.session() as session:
        rows = session.scalars(select(JudgedCanary).order_by(JudgedCanary.id)).all()
        assert len(rows) == canaries.KEPT
        assert [len(row.examples) for row in rows] == [0] * (canaries.KEPT - 1) + [1]


def test_a_promotion_that_was_not_recorded_is_settled(home: Registry) -> None:
    canary = begin(home)
    claimed(home, canary, "a")
    assert not home.apply(canaries.settle, canary.id, "a", at=AT)
    with home.change() as change:
        adapter = change.adapter("default", "home")
        point(change, adapter, "live", [[2, 100]], canaries.PROMOTE)
    assert home.apply(canaries.settle, canary.id, "a", at=AT)
    assert now_is(home).state is CanaryState.PROMOTED
    assert now_is(home).weight == 100


def test_the_traffic_of_processes_adds_up(home: Registry) -> None:
    one, other = ArmCounts(), ArmCounts()
    one.add(failed=True)
    for _ in range(3):
        other.add(failed=False, tokens=5, first_token=0.2)
    with home.session() as session:
        save_traffic(session, "p1", {(7, 1): one})
        save_traffic(session, "p1", {(7, 1): one + one, (7, 2): other})
        save_traffic(session, "p2", {(7, 1): other})
    with home.session() as session:
        found = read_traffic(session, [7, 8], 1)
        assert found == {7: one + one + other, 8: ArmCounts()}
        prune_traffic(session)
        assert read_traffic(session, [7], 1)[7].requests == 5, "it is of today"
