"""Slots under any order of events, against what must hold after each."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.admission import Grant, Slots, Ticket, TooManyPins
from tests.server.slot_simulation import Simulation

SLOTS, QUANTUM, LINGER = 3, 10, 2
KEYS = st.integers(1, 6)


class AnyOrderOfEvents(RuleBasedStateMachine):
    """Keeps its own account of slots and queue, and holds each grant against it."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(SLOTS, QUANTUM, LINGER)
        self.now = 0
        self.waiting: list[Ticket] = []  # in the order of asking
        self.leases: dict[int, list[Ticket]] = {}  # of each key that has a slot
        self.began: dict[int, int] = {}
        self.idle_since: dict[int, int] = {}
        self.pinned: set[int] = set()

    @rule(key=KEYS)
    def ask(self, key: int) -> None:
        self.waiting.append(self.slots.ask(key, self.now))
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

    @rule(key=KEYS)
    def pin(self, key: int) -> None:
        try:
            self.slots.pin(key)
            self.pinned.add(key)
        except TooManyPins:
            assert len(self.pinned) == SLOTS - 1
        self.advance()

    @rule(key=KEYS)
    def unpin(self, key: int) -> None:
        self.slots.unpin(key)
        self.pinned.discard(key)
        self.advance()

    @rule(key=KEYS)
    def remove(self, key: int) -> None:
        if self.leases.get(key):
            with pytest.raises(ValueError, match="run on"):
                self.slots.remove(key)
        else:
            self.slots.remove(key)
            self.pinned.discard(key)
            self.leases.pop(key, None)
        self.advance()

    @invariant()
    def no_more_keys_than_slots(self) -> None:
        assert len(self.leases) <= SLOTS
        assert len(self.pinned) < SLOTS
        assert {key for key in range(1, 7) if self.slots.holds(key)} == set(self.leases)

    @invariant()
    def no_slot_is_unused_while_somebody_waits(self) -> None:
        if not self.lacking():
            assert not self.waiting, "a holder's requests wait though nobody needs its slot"
            assert self.slots.next_deadline() is None
            return
        assert len(self.leases) == SLOTS
        idle = [key for key in self.leases if not self.leases[key] and key not in self.pinned]
        ends = [self.idle_since[key] + LINGER for key in idle]
        assert all(end > self.now for end in ends)
        assert self.slots.next_deadline() == min(ends, default=None)

    @invariant()
    def a_holder_s_requests_wait_only_after_its_quantum_and_behind_others(self) -> None:
        for key in {ticket.key for ticket in self.waiting} & set(self.leases):
            assert key not in self.pinned
            assert self.began[key] + QUANTUM <= self.now
            assert self.waiting[0].key not in self.leases

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
            self.leases[grant.key] = self.leases.get(grant.key, []) + list(grant.tickets)
            self.waiting = [ticket for ticket in self.waiting if ticket not in grant.tickets]

    def check(self, grant: Grant) -> None:
        first = self.waiting[0].key == grant.key
        new = grant.key not in self.leases
        mine = [ticket for ticket in self.waiting if ticket.key == grant.key]
        assert list(grant.tickets) == mine, "all that wait for a key come in together"
        assert first or not new, "slots go to the key that has waited longest"
        if grant.victim is not None:
            assert new
            assert grant.victim not in self.pinned
            assert self.leases.pop(grant.victim) == []
        if new:
            self.began[grant.key] = self.now

    def lacking(self) -> set[int]:
        return {ticket.key for ticket in self.waiting} - set(self.leases)

    def admitted(self) -> list[Ticket]:
        return [ticket for tickets in self.leases.values() for ticket in tickets]

    def end_one(self, ticket: Ticket) -> None:
        self.leases[ticket.key].remove(ticket)
        self.idle_since[ticket.key] = self.now
        self.slots.leave(ticket, self.now)


TestAnyOrderOfEvents = AnyOrderOfEvents.TestCase
TestAnyOrderOfEvents.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)


@settings(max_examples=300, deadline=None)
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
    slots = Slots(num_slots, quantum, linger)
    for key in range(1, num_pins + 1):
        slots.pin(key)
    simulation = Simulation(slots)
    time = 0
    for gap, key, duration in arrivals:
        time += gap
        simulation.at(time, lambda key=key, duration=duration: simulation.ask(key, duration))
    simulation.run()
    assert len(simulation.requests) == len(arrivals)
    for request in simulation.requests:
        turns = math.ceil(request.position / (num_slots - num_pins))
        assert request.waited is not None
        assert request.waited <= turns * (quantum + longest)


@settings(max_examples=200, deadline=None)
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
    simulation = Simulation(Slots(num_slots, quantum, linger_seconds=1))
    for key in range(100, 110):
        for again in range(20):
            simulation.at(again, lambda key=key: simulation.ask(key, longest, tenant="flood"))
    time = 0
    for gap, key in arrivals:
        time += gap
        simulation.at(time, lambda key=key: simulation.ask(key, 1, tenant=f"calm{key % 3}"))
    simulation.run()
    assert len(simulation.requests) == 200 + len(arrivals)
    for request in simulation.requests:
        assert request.waited is not None
        if request.key < 100:
            assert request.waited <= math.ceil(9 / num_slots) * (quantum + longest)


@settings(max_examples=200, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 6), st.integers(1, 8), st.integers(1, 15), st.sampled_from("ab")),
        max_size=80,
    ),
    num_slots=st.integers(1, 4),
    quantum=st.integers(0, 20),
    room=st.integers(1, 3),
)
def test_with_little_room_on_each_key_everybody_gets_in(
    arrivals: list[tuple[int, int, int, str]], num_slots: int, quantum: int, room: int
) -> None:
    simulation = Simulation(Slots(num_slots, quantum, linger_seconds=1, room=room))
    running: Counter[tuple[int, str]] = Counter()
    time = 0
    for gap, key, duration, tenant in arrivals:
        time += gap
        simulation.at(
            time,
            lambda key=key, duration=duration, tenant=tenant: simulation.ask(
                key, duration, tenant=tenant
            ),
        )
    simulation.run()
    assert len(simulation.requests) == len(arrivals)
    events = []
    for request, (_, key, duration, tenant) in zip(simulation.requests, arrivals, strict=True):
        assert request.waited is not None
        begins = request.asked_at + request.waited
        events += [(begins + duration, -1, key, tenant), (begins, 1, key, tenant)]
    for _, change, key, tenant in sorted(events):
        running[key, tenant] += change
        assert running[key, tenant] <= room
