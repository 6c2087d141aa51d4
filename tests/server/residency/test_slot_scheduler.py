"""Slots in turn: examples, each rule by plain calls."""

import pytest

from server.residency.slot_scheduler import Grant, SlotScheduler, TooManyPins

A, B, C, D = 1, 2, 3, 4


def two_slots() -> SlotScheduler:
    return SlotScheduler(2, quantum_seconds=10, linger_seconds=1)


def keys(grants: list[Grant]) -> list[int]:
    return [grant.version_id for grant in grants]


def test_free_slots_are_given_at_once() -> None:
    slots = two_slots()
    a, b = slots.ask(A, 0), slots.ask(B, 0)
    assert slots.advance(0) == [Grant(A, (a,)), Grant(B, (b,))]
    assert slots.holds(A)
    assert not slots.holds(C)


def test_a_holder_admits_its_own_at_once() -> None:
    slots = two_slots()
    slots.ask(A, 0)
    slots.advance(0)
    later = slots.ask(A, 100)
    assert slots.advance(100) == [Grant(A, (later,))]


def test_all_that_wait_for_a_key_come_in_together() -> None:
    slots = two_slots()
    held = [slots.ask(A, 0), slots.ask(B, 0)]
    slots.advance(0)
    waiting = (slots.ask(C, 1), slots.ask(C, 2))
    assert slots.advance(2) == []
    slots.leave(held[1], 3)
    assert slots.advance(4) == [Grant(C, waiting, victim=B)]
    assert not slots.holds(B)


def test_the_longest_idle_makes_room_first() -> None:
    slots = two_slots()
    a, b = slots.ask(A, 0), slots.ask(B, 0)
    slots.advance(0)
    slots.leave(b, 1)
    slots.leave(a, 2)
    slots.ask(C, 50)
    assert [grant.victim for grant in slots.advance(50)] == [B]


def test_an_idle_holder_lingers_so_that_a_chat_keeps_its_slot() -> None:
    slots = two_slots()
    a, _ = slots.ask(A, 0), slots.ask(B, 0)
    slots.advance(0)
    slots.ask(C, 0)
    slots.leave(a, 2)
    assert slots.advance(2) == []
    assert slots.next_deadline() == 3
    a = slots.ask(A, 2.5)
    assert keys(slots.advance(2.5)) == [A]
    assert slots.next_deadline() is None
    slots.leave(a, 4)
    assert keys(slots.advance(5)) == [C]


def test_after_its_quantum_the_longest_holder_closes_and_the_others_stay_open() -> None:
    slots = two_slots()
    a = slots.ask(A, 0)
    slots.advance(0)
    slots.ask(B, 1)
    slots.advance(1)
    slots.ask(C, 11)
    slots.ask(A, 12)
    b = slots.ask(B, 12)
    assert slots.advance(12) == [Grant(B, (b,))]
    slots.leave(a, 13)
    assert [(grant.version_id, grant.victim) for grant in slots.advance(13)] == [(C, A)]


def test_within_its_quantum_a_holder_stays_open() -> None:
    slots = two_slots()
    slots.ask(A, 0), slots.ask(B, 0)
    slots.advance(0)
    slots.ask(C, 1)
    slots.ask(A, 9.9)
    assert keys(slots.advance(9.9)) == [A]
    slots.ask(A, 10)
    assert slots.advance(10) == []


def test_a_closed_holder_opens_when_nobody_waits_any_more() -> None:
    slots = two_slots()
    slots.ask(A, 0), slots.ask(B, 0)
    slots.advance(0)
    c = slots.ask(C, 20)
    a = slots.ask(A, 21)
    assert slots.advance(21) == []
    slots.leave(c, 22)
    assert slots.advance(22) == [Grant(A, (a,))]


def test_a_closed_holder_that_is_first_in_the_queue_has_its_next_quantum() -> None:
    slots = two_slots()
    slots.ask(A, 0), slots.ask(B, 0)
    slots.advance(0)
    c = slots.ask(C, 20)
    a = slots.ask(A, 21)
    slots.ask(D, 22)
    slots.leave(c, 23)
    assert slots.advance(23) == [Grant(A, (a,))]
    slots.ask(A, 32)
    assert keys(slots.advance(32)) == [A]
    slots.ask(A, 33)
    assert slots.advance(33) == []


def test_a_next_quantum_is_a_new_turn_so_that_others_have_the_longest() -> None:
    slots = two_slots()
    slots.ask(A, 0), slots.ask(B, 0)
    slots.advance(0)
    c, a = slots.ask(C, 20), slots.ask(A, 21)
    d = slots.ask(D, 22)
    slots.leave(c, 23)
    assert slots.advance(23) == [Grant(A, (a,))]
    slots.leave(d, 24)
    slots.ask(C, 40)
    slots.ask(B, 41), slots.ask(A, 41)
    assert keys(slots.advance(41)) == [A], "B has had its slot since 0, A since 23"


def test_a_long_stream_in_one_slot_doesn_t_hold_up_the_queue() -> None:
    slots = two_slots()
    slots.ask(A, 0)  # never ends, and its turn is the longest
    slots.advance(0)
    b = slots.ask(B, 1)
    slots.advance(1)
    slots.ask(C, 20)
    slots.ask(B, 29)
    assert keys(slots.advance(29)) == [B]
    slots.ask(B, 30)
    assert slots.advance(30) == [], "C has waited for a quantum: every holder closes"
    slots.leave(b, 31)
    assert slots.advance(31) == []


def test_whoever_gives_up_waiting_loses_the_place() -> None:
    slots = SlotScheduler(1, quantum_seconds=10, linger_seconds=1)
    a = slots.ask(A, 0)
    slots.advance(0)
    b, _, _ = slots.ask(B, 1), slots.ask(C, 2), slots.ask(B, 3)
    slots.leave(b, 4)
    slots.leave(a, 20)
    assert keys(slots.advance(20)) == [C]


def test_long_streams_in_all_slots_are_waited_for_until_the_asker_gives_up() -> None:
    slots = two_slots()
    slots.ask(A, 0), slots.ask(B, 0)
    slots.advance(0)
    c = slots.ask(C, 0)
    assert slots.advance(1_000) == []
    assert slots.next_deadline() is None
    slots.leave(c, 1_000)
    slots.ask(A, 1_000)
    assert keys(slots.advance(1_000)) == [A]


def test_a_ticket_leaves_once() -> None:
    slots = two_slots()
    waiting = slots.ask(A, 0)
    slots.leave(waiting, 0)
    with pytest.raises(KeyError):
        slots.leave(waiting, 0)
    admitted = slots.ask(A, 0)
    slots.advance(0)
    slots.leave(admitted, 0)
    with pytest.raises(KeyError):
        slots.leave(admitted, 0)


def test_a_pinned_key_makes_no_room_and_never_closes() -> None:
    slots = two_slots()
    slots.pin(A)
    a, b = slots.ask(A, 0), slots.ask(B, 0)
    slots.advance(0)
    slots.leave(a, 1)
    slots.ask(C, 50)
    slots.ask(A, 100)
    assert keys(slots.advance(100)) == [A]
    slots.leave(b, 101)
    assert [grant.victim for grant in slots.advance(101)] == [B]


def test_an_unpinned_key_makes_room_again() -> None:
    slots = two_slots()
    slots.pin(A)
    a, _ = slots.ask(A, 0), slots.ask(B, 0)
    slots.advance(0)
    slots.leave(a, 1)
    slots.ask(C, 2)
    assert slots.advance(50) == []
    slots.unpin(A)
    assert [grant.victim for grant in slots.advance(50)] == [A]


def test_a_key_admits_few_of_one_tenant_at_a_time_and_others_at_once() -> None:
    slots = SlotScheduler(1, quantum_seconds=10, linger_seconds=1, max_running_per_tenant=2)
    flood = [slots.ask(A, 0, "flood") for _ in range(5)]
    calm = slots.ask(A, 0, "calm")
    assert slots.advance(0) == [Grant(A, (*flood[:2], calm))]
    assert slots.advance(0) == []
    slots.leave(flood[0], 1)
    assert slots.advance(1) == [Grant(A, (flood[2],))]
    slots.leave(flood[3], 2)
    slots.leave(flood[1], 2)
    assert slots.advance(2) == [Grant(A, (flood[4],))]


def test_a_closed_key_is_free_after_the_few_that_it_had_admitted() -> None:
    slots = SlotScheduler(1, quantum_seconds=10, linger_seconds=1, max_running_per_tenant=2)
    flood = [slots.ask(A, 0, "flood") for _ in range(5)]
    slots.advance(0)
    other = slots.ask(B, 1, "calm")
    slots.leave(flood[0], 2)
    assert keys(slots.advance(2)) == [A], "its quantum isn't over"
    slots.leave(flood[1], 11)
    assert slots.advance(11) == []
    slots.leave(flood[2], 12)
    assert slots.advance(12) == [Grant(B, (other,), victim=A)]
    slots.leave(other, 13)
    assert slots.advance(14) == [Grant(A, tuple(flood[3:]), victim=B)]


def test_one_slot_stays_without_a_pin() -> None:
    slots = two_slots()
    slots.pin(A)
    slots.pin(A)
    with pytest.raises(TooManyPins, match="at most 1 of 2"):
        slots.pin(B)
    slots.remove(A)
    slots.pin(B)


def test_a_key_that_requests_run_on_cannot_be_removed() -> None:
    slots = two_slots()
    a = slots.ask(A, 0)
    slots.advance(0)
    with pytest.raises(ValueError, match="1 requests"):
        slots.remove(A)
    assert slots.holds(A)
    slots.leave(a, 1)
    slots.remove(A)
    assert not slots.holds(A)


def test_what_waits_for_a_removed_key_gets_another_turn() -> None:
    slots = SlotScheduler(1, quantum_seconds=10, linger_seconds=1)
    a = slots.ask(A, 0)
    slots.advance(0)
    b = slots.ask(B, 0)
    again = slots.ask(A, 11)
    assert slots.advance(11) == [], "its quantum is over, and another waits"
    slots.leave(a, 20)
    slots.remove(A)
    assert slots.advance(20) == [Grant(B, (b,))]
    slots.leave(b, 21)
    assert slots.advance(40) == [Grant(A, (again,), victim=B)]


def test_a_removed_key_may_come_back() -> None:
    slots = two_slots()
    slots.ask(A, 0)
    slots.advance(0)
    slots.remove(B)
    b = slots.ask(B, 1)
    slots.advance(1)
    slots.leave(b, 2)
    assert slots.holds(B)


def test_a_tenant_s_many_adapters_don_t_stand_before_another_s_one() -> None:
    slots = two_slots()
    running = slots.ask(A, 0, "flood")
    slots.ask(B, 0, "flood")
    slots.advance(0)
    for version_id in range(10, 60):
        slots.ask(version_id, 1, "flood")
    slots.ask(C, 2, "calm")
    slots.leave(running, 11)
    assert keys(slots.advance(11)) == [C]


def test_tenants_take_slots_in_turn_and_one_alone_has_them_all() -> None:
    slots = SlotScheduler(6, quantum_seconds=10, linger_seconds=1)
    for version_id in range(10, 15):
        slots.ask(version_id, 0, "early")
    for version_id in range(20, 22):
        slots.ask(version_id, 1, "late")
    assert keys(slots.advance(1)) == [10, 20, 11, 21, 12, 13]
    alone = two_slots()
    for version_id in (A, B, C):
        alone.ask(version_id, 0, "early")
    assert keys(alone.advance(0)) == [A, B]


def test_a_tenant_with_one_slot_s_worth_of_work_is_next_after_each_of_a_flood_s() -> None:
    slots = SlotScheduler(1, quantum_seconds=10, linger_seconds=0)
    running = slots.ask(A, 0, "flood")
    slots.advance(0)
    slots.ask(B, 1, "flood")
    slots.ask(C, 2, "calm")
    slots.leave(running, 3)
    assert keys(slots.advance(3)) == [C]
