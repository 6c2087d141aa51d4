"""The life of a version in an engine, walked at random."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from server.residency.states import (
    LONGEST_PAUSE_SECONDS,
    TRANSITIONS,
    Event,
    ImpossibleTransition,
    State,
    VersionEntry,
    VersionStates,
)
from tests.long_form import examples

BUDGET = 4
IDS = st.integers(1, 8)


def test_every_state_can_be_left_and_reached() -> None:
    sources, ends = {state for state, _ in TRANSITIONS}, set(TRANSITIONS.values())
    assert sources == ends == set(State)


def test_what_the_table_does_not_name_is_impossible() -> None:
    for state in State:
        for event in Event:
            resident = VersionEntry(state)
            if (state, event) in TRANSITIONS:
                resident.on(event)
            else:
                with pytest.raises(ImpossibleTransition):
                    resident.on(event)
                assert resident.state is state


def test_pauses_grow_to_a_bound() -> None:
    resident, pauses = VersionEntry(), []
    for _ in range(10):
        resident.on(Event.WANTED)
        resident.fail("no", now=100.0)
        pauses.append(resident.retry_at - 100.0)
    assert pauses[:3] == [1.0, 2.0, 4.0]
    assert pauses[-1] == LONGEST_PAUSE_SECONDS


def four(in_slot: int = 0) -> VersionStates:
    residency = VersionStates(4, lambda version_id: version_id == in_slot)
    for version_id, used_at in ((1, 5.0), (2, 3.0), (3, 4.0), (4, 1.0)):
        residency[version_id].state, residency[version_id].used_at = State.READY, used_at
    return residency


def test_least_recently_used_leave_first_and_those_in_slots_last() -> None:
    residency = four(in_slot=4)
    assert residency.to_evict([], spare_waiting=False) == []
    assert residency.to_evict([0] * 2, spare_waiting=False) == [2, 3]
    residency[2].leases, residency[3].pinned = 1, True
    assert residency.to_evict([0] * 2, spare_waiting=False) == [1, 4]
    assert residency.to_evict([0] * 3, spare_waiting=False) is None


def test_bytes_bound_host_memory_too() -> None:
    residency = VersionStates(100, lambda _id: False, host_bytes=10)
    for version_id, num_bytes in ((1, 6), (2, 1), (3, 3)):
        entry = residency[version_id]
        entry.state, entry.num_bytes, entry.used_at = State.READY, num_bytes, version_id
    assert residency.to_evict([], spare_waiting=False) == []
    assert residency.to_evict([5], spare_waiting=False) == [1]
    assert residency.to_evict([7], spare_waiting=False) == [1, 2]
    assert residency.to_evict([5, 5], spare_waiting=False) == [1, 2, 3]
    assert residency.to_evict([11], spare_waiting=False) is None
    residency[1].leases = 1
    assert residency.to_evict([4], spare_waiting=False) == [2, 3]
    assert residency.to_evict([5], spare_waiting=False) is None


def test_who_is_waited_for_leaves_last_and_only_for_one_that_has_its_slot() -> None:
    residency = four()
    residency[2].waiting = residency[4].waiting = 1
    assert residency.to_evict([0] * 3, spare_waiting=False) == [3, 1, 4]
    assert residency.to_evict([0] * 2, spare_waiting=True) == [3, 1]
    assert residency.to_evict([0] * 3, spare_waiting=True) is None


def test_what_a_promotion_waits_for_leaves_last_and_not_for_a_prefetch() -> None:
    residency = four(in_slot=3)
    residency[4].kept = True
    assert residency.to_evict([0] * 4, spare_waiting=False) == [2, 1, 3, 4]
    assert residency.to_evict([0] * 4, spare_waiting=True) is None


def test_who_is_leaving_counts_no_more_unless_it_still_runs() -> None:
    residency = four()
    residency[1].on(Event.EVICTED)
    assert residency.to_evict([0], spare_waiting=False) == []
    residency[1].leases = 1
    assert residency.to_evict([0], spare_waiting=False) == [4]


def test_forgotten_is_what_is_neither_there_nor_wanted() -> None:
    residency = four()
    assert not residency.forget(1)
    residency[1].on(Event.EVICTED)
    residency[1].on(Event.GONE)
    residency[1].waiting = 1
    assert not residency.forget(1)
    residency[1].waiting = 0
    assert residency.forget(1)
    assert len(residency.items()) == 3


class Lives(RuleBasedStateMachine):
    """Loads only where `to_evict` has made room; so the budget holds, and nothing held leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.residency, self.now = VersionStates(BUDGET, lambda i: i % 2 == 0), 0.0

    @rule(version_id=IDS)
    def want(self, version_id: int) -> None:
        self.now += 1
        resident = self.residency[version_id]
        if resident.state in (State.DRAINING, State.ABSENT, State.FAILED):
            resident.on(Event.WANTED)
        resident.leases += 1
        resident.used_at = self.now

    @rule(version_id=IDS)
    def make_room(self, version_id: int) -> None:
        resident = self.residency[version_id]
        if resident.state is State.FETCHING:
            leaving = self.residency.to_evict([0], spare_waiting=False)
            if leaving is None:
                return
            resident.on(Event.FETCHED)
            for other in leaving:
                assert self.residency[other].leases == 0
                assert not self.residency[other].pinned
                self.residency[other].on(Event.EVICTED)
                self.residency[other].on(Event.GONE)

    @rule(version_id=IDS, fails=st.booleans())
    def go_on(self, version_id: int, fails: bool) -> None:
        resident = self.residency[version_id]
        if resident.state in (State.FETCHING, State.LOADING) and fails:
            resident.fail("no", self.now)
            resident.leases = 0
        elif resident.state is State.LOADING:
            resident.on(Event.LOADED)

    @rule(version_id=IDS)
    def leave(self, version_id: int) -> None:
        resident = self.residency[version_id]
        if resident.leases and resident.state in (State.READY, State.DRAINING):
            resident.leases -= 1
            if resident.state is State.DRAINING and not resident.leases:
                resident.on(Event.GONE)
        self.residency.forget(version_id)

    @rule(version_id=IDS)
    def dismiss(self, version_id: int) -> None:
        resident = self.residency[version_id]
        if resident.state is State.READY:
            resident.on(Event.EVICTED)
            if not resident.leases:
                resident.on(Event.GONE)

    @rule(version_id=IDS)
    def pin_or_unpin(self, version_id: int) -> None:
        self.residency[version_id].pinned ^= True

    @invariant()
    def the_budget_holds(self) -> None:
        assert sum(r.in_memory for _, r in self.residency.items()) <= BUDGET


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=examples(60), stateful_step_count=40, deadline=None)
