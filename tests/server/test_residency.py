"""The life of a version in an engine, walked at random."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from server.residency import (
    IN_MEMORY,
    LONGEST_PAUSE_SECONDS,
    TRANSITIONS,
    Event,
    ImpossibleTransition,
    Residency,
    Resident,
    State,
)

BUDGET = 4
IDS = st.integers(1, 8)


def test_every_state_can_be_left_and_reached() -> None:
    sources, ends = {state for state, _ in TRANSITIONS}, set(TRANSITIONS.values())
    assert sources == ends == set(State)


def test_what_the_table_does_not_name_is_impossible() -> None:
    for state in State:
        for event in Event:
            resident = Resident(state)
            if (state, event) in TRANSITIONS:
                resident.on(event)
            else:
                with pytest.raises(ImpossibleTransition):
                    resident.on(event)
                assert resident.state is state


def test_pauses_grow_to_a_bound() -> None:
    resident, pauses = Resident(), []
    for _ in range(10):
        resident.on(Event.WANTED)
        resident.fail("no", now=100.0)
        pauses.append(resident.retry_at - 100.0)
    assert pauses[:3] == [1.0, 2.0, 4.0]
    assert pauses[-1] == LONGEST_PAUSE_SECONDS


def test_least_recently_used_leave_first_and_those_in_slots_last() -> None:
    residency = Residency(4)
    for engine_id, used_at in ((1, 5.0), (2, 3.0), (3, 4.0), (4, 1.0)):
        residency[engine_id].state, residency[engine_id].used_at = State.READY, used_at
    assert residency.to_evict(0, lambda _: False) == []
    assert residency.to_evict(2, lambda i: i == 4) == [2, 3]
    residency[2].leases, residency[3].pinned = 1, True
    assert residency.to_evict(2, lambda i: i == 4) == [1, 4]
    assert residency.to_evict(3, lambda _: False) is None


class Lives(RuleBasedStateMachine):
    """Loads only where `to_evict` has made room; so the budget holds, and nothing held leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.residency, self.now = Residency(BUDGET), 0.0

    @rule(engine_id=IDS)
    def want(self, engine_id: int) -> None:
        self.now += 1
        resident = self.residency[engine_id]
        if resident.state is State.DRAINING:
            resident.on(Event.WANTED)
        elif resident.state in (State.ABSENT, State.FAILED):
            leaving = self.residency.to_evict(1, lambda i: i % 2 == 0)
            if leaving is None:
                return
            for other in leaving:
                assert self.residency[other].leases == 0
                assert not self.residency[other].pinned
                self.residency[other].on(Event.DISMISSED)
                self.residency[other].on(Event.GONE)
            resident.on(Event.WANTED)
        resident.leases += 1
        resident.used_at = self.now

    @rule(engine_id=IDS, fails=st.booleans())
    def go_on(self, engine_id: int, fails: bool) -> None:
        resident = self.residency[engine_id]
        if resident.state in (State.FETCHING, State.LOADING):
            if fails:
                resident.fail("no", self.now)
                resident.leases = 0
            else:
                step = Event.FETCHED if resident.state is State.FETCHING else Event.LOADED
                resident.on(step)

    @rule(engine_id=IDS)
    def leave(self, engine_id: int) -> None:
        resident = self.residency[engine_id]
        if resident.leases and resident.state in (State.READY, State.DRAINING):
            resident.leases -= 1
            if resident.state is State.DRAINING and not resident.leases:
                resident.on(Event.GONE)
        self.residency.forget(engine_id)

    @rule(engine_id=IDS)
    def dismiss(self, engine_id: int) -> None:
        resident = self.residency[engine_id]
        if resident.state is State.READY:
            resident.on(Event.DISMISSED)
            if not resident.leases:
                resident.on(Event.GONE)

    @rule(engine_id=IDS)
    def pin_or_unpin(self, engine_id: int) -> None:
        self.residency[engine_id].pinned ^= True

    @invariant()
    def the_budget_holds(self) -> None:
        assert sum(r.state in IN_MEMORY for _, r in self.residency.items()) <= BUDGET


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
