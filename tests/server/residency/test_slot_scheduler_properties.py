"""Slots under any order of events, against what must hold after each."""

import math
from collections import Counter
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.residency.slot_scheduler import Grant, SlotScheduler, SlotTicket, TooManyPins
from tests.long_form import examples
from tests.server.residency.slot_simulation import Simulation

SLOTS, QUANTUM, LINGER = 3, 10, 2
KEYS = st.integers(1, 6)


class AnyOrderOfEvents(RuleBasedStateMachine):
    """Keeps its own account of slots and queue, and holds each grant against it."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = SlotScheduler(SLOTS, QUANTUM, LINGER)
        self.now = 0.0
        self.waiting: list[SlotTicket] = []  # in the order of asking
        self.leases: dict[int, list[SlotTicket]] = {}  # of each key that has a slot
        self.began: dict[int, float] = {}
        self.idle_since: dict[int, float] = {}
        self.pinned: set[int] = set()

    @rule(version_id=KEYS)
    def ask(self, version_id: int) -> None:
        self.waiting.append(self.slots.ask(version_id, self.now))
        self.advance()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(ticket)
        self.slots.leave(ticket, self.now)
        self.advance()

    @precondition(lambda self: any(self.leases.values()))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.end_one(data.draw(st.sampled_from(self.admitted())))
        self.advance()

    @rule(seconds=st.integers(1, 2 * QUANTUM))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds
        self.advance()

    @rule(version_id=KEYS)
    def pin(self, version_id: int) -> None:
        try:
            self.slots.pin(version_id)
            self.pinned.add(version_id)
        except TooManyPins:
            assert len(self.pinned) == SLOTS - 1
        self.advance()

    @rule(version_id=KEYS)
    def unpin(self, version_id: int) -> None:
        self.slots.unpin(version_id)
        self.pinned.discard(version_id)
        self.advance()

    @rule(version_id=KEYS)
    def remove(self, version_id: int) -> None:
        if self.leases.get(version_id):
            with pytest.raises(ValueError, match="run on"):
                self.slots.remove(version_id)
        else:
            self.slots.remove(version_id)
            self.pinned.discard(version_id)
            self.leases.pop(version_id, None)
        self.advance()

    @invariant()
    def no_more_keys_than_slots(self) -> None:
        assert len(self.leases) <= SLOTS
        assert len(self.pinned) < SLOTS
        assert {version_id for version_id in range(1, 7) if self.slots.holds(version_id)} == set(
            self.leases
        )

    @invariant()
    def no_slot_is_unused_while_somebody_waits(self) -> None:
        if not self.lacking():
            assert not self.waiting, "a holder's requests wait though nobody needs its slot"
            assert self.slots.next_deadline() is None
            return
        assert len(self.leases) == SLOTS
        idle = [
            version_id
            for version_id in self.leases
            if not self.leases[version_id] and version_id not in self.pinned
        ]
        ends = [self.idle_since[version_id] + LINGER for version_id in idle]
        assert all(end > self.now for end in ends)
        assert self.slots.next_deadline() == min(ends, default=None)

    @invariant()
    def a_holder_s_requests_wait_only_after_its_quantum_and_behind_others(self) -> None:
        for version_id in {ticket.version_id for ticket in self.waiting} & set(self.leases):
            assert version_id not in self.pinned
            assert self.began[version_id] + QUANTUM <= self.now
            assert self.waiting[0].version_id not in self.leases

    def teardown(self) -> None:
        """Everyone who waits gets in, once those before them have left."""
        for _ in range(1000):
            if not self.waiting:
                return
            for ticket in self.admitted():
                self.end_one(ticket)
            self.advance()
            self.now = self.slots.next_deadline() or self.now
            self.advance()
        raise AssertionError("starved")

    def advance(self) -> None:
        for grant in self.slots.advance(self.now):
            self.check(grant)
            self.leases[grant.version_id] = self.leases.get(grant.version_id, []) + list(
                grant.tickets
            )
            self.waiting = [ticket for ticket in self.waiting if ticket not in grant.tickets]

    def check(self, grant: Grant) -> None:
        first = self.waiting[0].version_id == grant.version_id
        new = grant.version_id not in self.leases
        mine = [ticket for ticket in self.waiting if ticket.version_id == grant.version_id]
        assert list(grant.tickets) == mine, "all that wait for a key come in together"
        assert first or not new, "slots go to the key that has waited longest"
        if grant.victim is not None:
            assert new
            assert grant.victim not in self.pinned
            assert self.leases.pop(grant.victim) == []
        if new:
            self.began[grant.version_id] = self.now

    def lacking(self) -> set[int]:
        return {ticket.version_id for ticket in self.waiting} - set(self.leases)

    def admitted(self) -> list[SlotTicket]:
        return [ticket for tickets in self.leases.values() for ticket in tickets]

    def end_one(self, ticket: SlotTicket) -> None:
        self.leases[ticket.version_id].remove(ticket)
        self.idle_since[ticket.version_id] = self.now
        self.slots.leave(ticket, self.now)


TestAnyOrderOfEvents = AnyOrderOfEvents.TestCase
TestAnyOrderOfEvents.settings = settings(
    max_examples=examples(200), stateful_step_count=60, deadline=None
)


@settings(max_examples=examples(300), deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 6), st.integers(1, 8), st.integers(1, 15)), max_size=80
    ),
    num_slots=st.integers(1, 4),
    quantum=st.integers(0, 20),
    linger=st.integers(0, 15),
    num_pins=st.integers(0, 3),
)
def test_every_wait_keeps_to_the_bound(
    arrivals: list[tuple[int, int, int]], num_slots: int, quantum: int, linger: int, num_pins: int
) -> None:
    longest = 15
    num_pins = min(num_pins, num_slots - 1)
    slots = SlotScheduler(num_slots, quantum, linger)
    for version_id in range(1, num_pins + 1):
        slots.pin(version_id)
    simulation = Simulation(slots)
    time = 0
    for gap, version_id, duration in arrivals:
        time += gap
        simulation.at(time, partial(simulation.ask, version_id, duration))
    simulation.run()
    assert len(simulation.requests) == len(arrivals)
    for request in simulation.requests:
        turns = math.ceil(request.position / (num_slots - num_pins))
        assert request.waited is not None
        assert request.waited <= turns * (quantum + longest)


@settings(max_examples=examples(200), deadline=None)
@given(
    arrivals=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=60),
    num_slots=st.integers(1, 4),
    quantum=st.integers(0, 20),
)
def test_nobody_starves_among_tenants_and_a_tenant_s_first_key_is_soon_next(
    arrivals: list[tuple[int, int]], num_slots: int, quantum: int
) -> None:
    """Keys 1 to 9 belong to three tenants; a flood of a fourth has always ten waiting."""
    longest = 5
    simulation = Simulation(SlotScheduler(num_slots, quantum, linger_seconds=1))
    for version_id in range(100, 110):
        for again in range(20):
            simulation.at(again, partial(simulation.ask, version_id, longest, tenant="flood"))
    time = 0
    for gap, version_id in arrivals:
        time += gap
        calm = f"calm{version_id % 3}"
        simulation.at(time, partial(simulation.ask, version_id, 1, tenant=calm))
    simulation.run()
    assert len(simulation.requests) == 200 + len(arrivals)
    for request in simulation.requests:
        assert request.waited is not None
        if request.version_id < 100:
            # The module's bound: the third version of a tenant with h slots comes after at most
            # 3 + h versions of each of the three other tenants.
            place = 3 + 3 * (3 + num_slots)
            assert request.waited <= math.ceil(place / num_slots) * (quantum + longest)


@settings(max_examples=examples(200), deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 6), st.integers(1, 8), st.integers(1, 15), st.sampled_from("ab")),
        max_size=80,
    ),
    num_slots=st.integers(1, 4),
    quantum=st.integers(0, 20),
    max_running_per_tenant=st.integers(1, 3),
)
def test_with_little_room_on_each_key_everybody_gets_in(
    arrivals: list[tuple[int, int, int, str]],
    num_slots: int,
    quantum: int,
    max_running_per_tenant: int,
) -> None:
    simulation = Simulation(
        SlotScheduler(
            num_slots, quantum, linger_seconds=1, max_running_per_tenant=max_running_per_tenant
        )
    )
    running: Counter[tuple[int, str]] = Counter()
    time = 0
    for gap, version_id, duration, tenant in arrivals:
        time += gap
        simulation.at(time, partial(simulation.ask, version_id, duration, tenant=tenant))
    simulation.run()
    assert len(simulation.requests) == len(arrivals)
    events = []
    for request, (_, version_id, duration, tenant) in zip(
        simulation.requests, arrivals, strict=True
    ):
        assert request.waited is not None
        begins = request.asked_at + request.waited
        events += [(begins + duration, -1, version_id, tenant), (begins, 1, version_id, tenant)]
    for _, change, version_id, tenant in sorted(events):
        running[version_id, tenant] += change
        assert running[version_id, tenant] <= max_running_per_tenant
