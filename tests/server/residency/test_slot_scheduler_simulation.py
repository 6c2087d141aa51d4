"""What the turns are for: neither thrash nor starvation, in simulated time."""

import random
from functools import partial
from statistics import mean, median

from hypothesis import given, settings
from hypothesis import strategies as st

from server.residency.slot_scheduler import SlotScheduler
from tests.long_form import examples
from tests.server.residency.slot_simulation import Simulation

QUANTUM, LINGER, GAP = 8.0, 0.05, 0.01
LONGEST = 0.2 + 64 * 0.06


def answers(rng: random.Random) -> float:
    """Seconds of an answer on a small CPU: a prompt, then 32 to 64 tokens."""
    return rng.uniform(0.05, 0.2) + rng.randint(32, 64) * rng.uniform(0.03, 0.06)


def closed_loop(num_keys: int, num_clients: int, quantum: float = QUANTUM) -> Simulation:
    """Ten minutes of clients that ask again after each answer, over eight slots."""
    simulation = Simulation(SlotScheduler(8, quantum, LINGER))
    rng = random.Random(7)
    for client in range(num_clients):
        simulation.closed_loop(client % num_keys, lambda: answers(rng), GAP)
    simulation.run(600)
    return simulation


def waits(simulation: Simulation, version_id: int | None = None) -> list[float]:
    return [
        # One that still waits at the end has waited at least so long.
        simulation.now - request.asked_at if request.waited is None else request.waited
        for request in simulation.requests
        if version_id in (None, request.version_id)
    ]


def test_as_many_adapters_as_slots_never_wait() -> None:
    simulation = closed_loop(num_keys=8, num_clients=16)
    assert max(waits(simulation)) == 0
    assert simulation.num_loads == 8


def test_twice_as_many_adapters_as_slots_neither_thrash_nor_starve() -> None:
    simulation = closed_loop(num_keys=16, num_clients=16)
    assert median(waits(simulation)) == 0, "most requests find their adapter in its slot"
    assert max(waits(simulation)) <= QUANTUM + LONGEST
    assert simulation.num_loads < len(simulation.requests) / 2
    shares = [len(waits(simulation, version_id)) for version_id in range(16)]
    assert min(shares) > 0.7 * max(shares)


def test_without_a_quantum_each_request_would_wait() -> None:
    """The control: turns of a single answer, an adapter loaded for each."""
    simulation = closed_loop(num_keys=16, num_clients=16, quantum=0)
    assert median(waits(simulation)) > 1
    assert simulation.num_loads > 0.9 * len(simulation.requests)


def test_a_flood_of_one_adapter_postpones_others_by_no_more_than_a_turn() -> None:
    simulation = Simulation(SlotScheduler(2, QUANTUM, LINGER))
    rng = random.Random(7)
    for _ in range(100):
        simulation.closed_loop(0, lambda: answers(rng), GAP)
    for version_id in (1, 2, 3):
        simulation.closed_loop(version_id, lambda: answers(rng), GAP)
    simulation.run(600)
    for version_id in (1, 2, 3):
        assert max(waits(simulation, version_id)) <= 2 * (QUANTUM + LONGEST)
    shares = [len(waits(simulation, version_id)) for version_id in (1, 2, 3)]
    assert min(shares) > 0.7 * max(shares)


def test_two_chats_in_one_slot_don_t_alternate_at_each_message() -> None:
    simulation = Simulation(SlotScheduler(1, QUANTUM, LINGER))
    for version_id in (1, 2):
        simulation.closed_loop(version_id, lambda: 1.0, GAP)
    simulation.run(600)
    assert len(simulation.requests) / simulation.num_loads > 6
    assert max(waits(simulation)) <= QUANTUM + 1


def test_a_rare_adapter_costs_the_busy_ones_little() -> None:
    simulation = Simulation(SlotScheduler(8, QUANTUM, LINGER))
    rng = random.Random(7)
    for client in range(32):
        simulation.closed_loop(client % 8, lambda: answers(rng), GAP)

    def ask_rare(version_id: int) -> None:
        simulation.ask(version_id, answers(rng))

    for arrival in range(60):
        simulation.at(arrival * 10, partial(ask_rare, 100 + arrival))
    simulation.run(600)
    busy = [wait for version_id in range(8) for wait in waits(simulation, version_id)]
    assert mean(busy) < 0.1 * LONGEST
    assert max(waits(simulation)) <= 2 * LONGEST


ENDLESS = 1e6


def hogged(reserve_seconds: float, last_use: float | None) -> Simulation:
    """A tenant asks for an endless stream on each of eight adapters; another asks a minute later.

    `last_use`: when the other tenant had asked before, in seconds before the first tenant came.
    """
    simulation = Simulation(SlotScheduler(4, QUANTUM, LINGER, reserve_seconds=reserve_seconds))
    if last_use is not None:
        simulation.at(0, lambda: simulation.ask(100, 1, tenant="calm"))
    start = last_use or 0
    for version_id in range(8):
        simulation.at(start, partial(simulation.ask, version_id, ENDLESS, tenant="hog"))
    simulation.at(start + 60, lambda: simulation.ask(101, 1, tenant="calm"))
    simulation.at(start + 120, lambda: None)
    simulation.run(start + 120)
    return simulation


def num_admitted(simulation: Simulation) -> int:
    return sum(request.waited is not None for request in simulation.requests)


def test_a_tenant_that_used_the_server_lately_finds_a_slot_beside_endless_streams() -> None:
    simulation = hogged(reserve_seconds=600, last_use=300)
    assert waits(simulation, 101) == [0]
    assert num_admitted(simulation) == 2 + 3


def test_no_slot_is_kept_for_tenants_that_were_not_there() -> None:
    simulation = hogged(reserve_seconds=600, last_use=700)
    assert waits(simulation, 101) == [60], "it waits, until it gives up"
    assert num_admitted(simulation) == 1 + 4


def test_without_a_kept_slot_endless_streams_shut_all_others_out() -> None:
    """The control."""
    assert waits(hogged(reserve_seconds=0, last_use=300), 101) == [60]


@given(
    num_slots=st.integers(2, 8),
    num_adapters=st.integers(1, 20),
    num_calm=st.integers(1, 3),
    seed=st.integers(0, 1 << 16),
)
@settings(max_examples=examples(60), deadline=None)
def test_endless_streams_beyond_a_tenants_share_end_for_who_waits_long(
    num_slots: int, num_adapters: int, num_calm: int, seed: int
) -> None:
    """And only as many of them as there are tenants that lack a slot."""
    simulation = Simulation(SlotScheduler(num_slots, QUANTUM, LINGER, preempt_seconds=30))
    rng = random.Random(seed)
    for version_id in range(num_adapters):
        simulation.at(0, partial(simulation.ask, version_id, ENDLESS, tenant="hog"))
    num_calm = min(num_calm, num_slots - 1)
    for number in range(num_calm):
        at, tenant = rng.uniform(50, 60), f"calm{number}"
        simulation.at(at, partial(simulation.ask, 1000 + number, ENDLESS, tenant=tenant))
    simulation.run(200)
    for number in range(num_calm):
        [waited] = waits(simulation, 1000 + number)
        assert waited <= 30 + LINGER
    assert len(simulation.preempted) <= num_calm
    assert num_admitted(simulation) <= num_slots + len(simulation.preempted)


def test_nobody_is_ended_for_its_own_tenant_or_within_its_share() -> None:
    simulation = Simulation(SlotScheduler(2, QUANTUM, LINGER, preempt_seconds=30))
    for version_id in range(4):
        simulation.at(0, partial(simulation.ask, version_id, ENDLESS, tenant="alone"))
    simulation.run(100)
    assert (num_admitted(simulation), len(simulation.preempted)) == (2, 0)
    simulation = Simulation(SlotScheduler(2, QUANTUM, LINGER, preempt_seconds=30))
    for version_id in range(3):
        simulation.at(0, partial(simulation.ask, version_id, ENDLESS, tenant=f"t{version_id}"))
    simulation.run(100)
    assert (num_admitted(simulation), len(simulation.preempted)) == (2, 0)


def test_of_a_version_that_tenants_share_only_the_holders_own_requests_end() -> None:
    slots = SlotScheduler(2, QUANTUM, LINGER, preempt_seconds=30)
    own = [slots.ask(1, 0, "hog"), slots.ask(2, 1, "hog")]
    slots.advance(1)
    slots.ask(1, 2, "guest")
    slots.advance(2)
    slots.ask(3, 10, "calm")
    assert slots.advance(10) == []
    assert slots.overdue(39.9) == []
    assert slots.overdue(40) == own[:1], "the oldest, and not the guest's"
    assert slots.next_deadline(10) == 40


@given(
    num_slots=st.integers(2, 8),
    num_adapters=st.integers(1, 20),
    longest=st.floats(1, 60),
    seed=st.integers(0, 1 << 16),
)
@settings(max_examples=examples(60), deadline=None)
def test_a_tenant_below_its_share_waits_for_one_answer_at_most(
    num_slots: int, num_adapters: int, longest: float, seed: int
) -> None:
    """However short another tenant's quanta have run: its surplus admits nothing meanwhile."""
    simulation = Simulation(SlotScheduler(num_slots, 1000, LINGER))
    rng = random.Random(seed)

    def flood(version_id: int) -> None:
        simulation.ask(
            version_id, rng.uniform(0.1, longest), lambda: flood(version_id), tenant="flood"
        )

    for version_id in range(num_adapters):
        for _ in range(3):
            simulation.at(0, partial(flood, version_id))
    for arrival in range(5):
        at = 100 + arrival * 3 * longest
        simulation.at(at, lambda: simulation.ask(1000, 0.1, tenant="calm"))
    simulation.run(100 + 20 * longest)
    assert len(waits(simulation, 1000)) == 5
    assert max(waits(simulation, 1000)) <= longest + LINGER
