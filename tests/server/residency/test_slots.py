"""Versions in one engine: brought once, in turn, within the budget."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from adapters_registry.records.catalog import VersionRecord
from adapters_registry.registry import Registry
from server.errors import SlotTimeout
from server.residency.slots import EngineSlots, Limits, SlotLease
from server.residency.states import Tier, Wait
from server.tenancy.prompt_queue import PromptQueue
from tests.server.fake_engine import FakeEngine
from tests.server.residency.engine_slots import HOST, LIMITS, SLOTS, held, make, touch, until


async def test_many_at_once_load_once(
    slots: EngineSlots, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    engine.load_seconds = 0.02
    await asyncio.gather(*(touch(slots, versions[0]) for _ in range(10)))
    assert engine.loads == ["default/n0@1"]


async def test_each_tier_is_named(
    slots: EngineSlots, registry: Registry, versions: list[VersionRecord]
) -> None:
    assert slots.tier_of(versions[0]) is Tier.DISK
    await touch(slots, versions[0])
    assert slots.tier_of(versions[0]) is Tier.SLOT
    for version in versions[1 : SLOTS + 1]:
        await touch(slots, version)
    assert slots.tier_of(versions[0]) is Tier.HOST
    for version in versions[SLOTS + 1 : HOST + 1]:
        await touch(slots, version)
    assert slots.tier_of(versions[0]) is Tier.DISK
    registry.content.discard(versions[0].digest)
    assert slots.tier_of(versions[0]) is Tier.ORIGIN


async def test_slots_and_host_memory_keep_to_their_budgets(
    slots: EngineSlots, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    engine.load_seconds, most = 0.001, [0, 0]

    async def ask(version: VersionRecord) -> None:
        async with slots.lease(version, version.tenant):
            assert version.version_id in engine.slots
            most[0] = max(most[0], len(engine.slots))
            most[1] = max(most[1], len(engine.host))
            await asyncio.sleep(0.002)
            assert version.version_id in engine.slots, "it kept its slot"

    await asyncio.gather(*(ask(versions[n % 8]) for n in range(160)))
    assert most[0] <= SLOTS
    assert most[1] <= HOST + 1, "who leaves may still be there while another comes"
    assert not any(r.in_use for _, r in slots.host.states.items())


async def test_who_waits_too_long_is_told(
    registry: Registry, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    limits = Limits(1, 8, 4, 0.0, 0.0, slot_wait_seconds=0.05, load_seconds=2.0)
    slots = make(registry, engine, limits)
    async with held(slots, versions[0]):
        with pytest.raises(SlotTimeout):
            await touch(slots, versions[1])
        await touch(slots, versions[0])
    await touch(slots, versions[1])


async def test_a_flood_whose_prompts_take_turns_gives_its_slots_back_soon(
    registry: Registry, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    limits = replace(LIMITS, max_running_per_tenant=4, quantum_seconds=0.02)
    slots, turns, ended = make(registry, engine, limits), PromptQueue(2, 100), []

    async def ask(version: VersionRecord, tenant: str) -> None:
        async with slots.lease(version, tenant), turns.admission(tenant, 1, 10):
            await asyncio.sleep(0.002)
        ended.append(tenant)

    async with asyncio.TaskGroup() as running:
        for number in range(400):
            running.create_task(ask(versions[number % SLOTS], "flood"))
        await until(lambda: len(ended) >= 2)
        await running.create_task(ask(versions[SLOTS], "calm"))
        assert len(ended) < 200
    assert len(ended) == 401


async def test_the_wait_for_a_slot_is_bounded_behind_ones_own_requests_too(
    registry: Registry, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    limits = replace(LIMITS, max_running_per_tenant=1, slot_wait_seconds=0.01)
    slots = make(registry, engine, limits)
    async with held(slots, versions[0]):
        with pytest.raises(SlotTimeout, match="send fewer at a time"):
            await touch(slots, versions[0])
    await touch(slots, versions[0])


async def test_who_waits_is_counted_while_it_waits(
    registry: Registry, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    slots = make(registry, engine, replace(LIMITS, max_running_per_tenant=1))
    nobody = {Wait.SLOT: 0, Wait.SHARE: 0, Wait.LOAD: 0}
    async with held(slots, versions[0]), held(slots, versions[1]):
        assert slots.num_waiting() == nobody
        own = asyncio.create_task(touch(slots, versions[0]))
        others = asyncio.create_task(touch(slots, versions[2]))
        await asyncio.sleep(0.01)
        assert slots.num_waiting() == nobody | {Wait.SHARE: 1, Wait.SLOT: 1}
    await asyncio.gather(own, others)
    assert slots.num_waiting() == nobody


async def test_who_waits_for_weights_is_counted(
    registry: Registry, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    slots, may_load = make(registry, engine, LIMITS), asyncio.Event()
    prepare = engine.prepare

    async def slowly(version: VersionRecord, path: Path) -> None:
        await may_load.wait()
        await prepare(version, path)

    engine.prepare = slowly  # type: ignore[method-assign]
    asked = [asyncio.create_task(touch(slots, versions[0])) for _ in range(3)]
    await asyncio.sleep(0.01)
    assert slots.num_waiting() == {Wait.SLOT: 0, Wait.SHARE: 0, Wait.LOAD: 3}
    may_load.set()
    await asyncio.gather(*asked)
    assert not any(slots.num_waiting().values())


async def test_a_lease_that_ends_early_frees_its_slot(
    slots: EngineSlots, versions: list[VersionRecord]
) -> None:
    async with slots.lease(versions[0], "default") as first, slots.lease(versions[1], "default"):
        third = asyncio.create_task(touch(slots, versions[2]))
        await asyncio.sleep(0.1)
        assert not third.done()
        first.end()
        await third


async def test_waiting_is_told_of_who_waits_and_not_of_the_adapters_owner(
    slots: EngineSlots, versions: list[VersionRecord]
) -> None:
    async with slots.lease(versions[0], "borrower"):
        pass
    labels = {"tenant": "borrower", "reason": "slot"}
    assert REGISTRY.get_sample_value("loraplex_queue_seconds_count", labels) == 1


async def test_behind_requests_of_ones_own_one_waits_on(
    registry: Registry, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    limits = replace(LIMITS, max_running_per_tenant=1, slot_wait_seconds=0.02)
    slots = make(registry, engine, limits)
    async with held(slots, versions[0]) as let_go:
        second = asyncio.create_task(touch(slots, versions[0]))
        await asyncio.sleep(0.05)
        assert not second.done()
        let_go()
        await second


async def test_a_client_that_leaves_frees_its_place(
    registry: Registry, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    slots = make(registry, engine, Limits(1, 8, 4, 0.0, 0.0, 60.0, 2.0))
    async with held(slots, versions[0]) as let_go:
        first = asyncio.create_task(touch(slots, versions[1]))
        second = asyncio.create_task(touch(slots, versions[2]))
        await asyncio.sleep(0.01)
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        let_go()
        await second
    assert not any(r.in_use for _, r in slots.host.states.items())
    assert engine.slots == {versions[2].version_id}


async def test_a_pinned_version_keeps_its_slot(
    slots: EngineSlots, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    slots.slots.pin(versions[0].version_id)
    slots.host.states[versions[0].version_id].pinned = True
    for version in [*versions, *versions[1:]]:
        await touch(slots, version)
    assert slots.tier_of(versions[0]) is Tier.SLOT
    assert engine.loads.count("default/n0@1") == 1


async def test_who_has_waited_long_for_its_share_gets_a_slot_of_an_endless_request(
    registry: Registry, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    slots = make(registry, engine, replace(LIMITS, preempt_seconds=0.05))
    preempted: list[int] = []

    async def endless(number: int) -> None:
        async with slots.lease(versions[number], "hog") as lease:
            ended = asyncio.Event()
            lease.on_preempted(ended.set)
            await ended.wait()
            preempted.append(number)

    hogs = [asyncio.create_task(endless(number)) for number in range(SLOTS + 1)]
    await until(lambda: sum(entry.leases for _, entry in slots.host.states.items()) == SLOTS)
    async with slots.lease(versions[7], "calm"):
        assert preempted == [0]
    await until(lambda: slots.slots.holds(versions[SLOTS].version_id))  # the hog's again
    for task in hogs:
        task.cancel()
    await asyncio.gather(*hogs, return_exceptions=True)


def test_a_request_hears_that_it_was_preempted_before_it_listened() -> None:
    lease, heard = SlotLease(lambda: None), list[bool]()
    lease.preempt()
    lease.on_preempted(lambda: heard.append(True))
    lease.preempt()
    assert heard == [True]
