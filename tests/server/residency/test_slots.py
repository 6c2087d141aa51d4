"""Versions in one engine: brought once, in turn, within the budget, and gone in the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import copytree

import pytest
from prometheus_client import REGISTRY

from adapters_registry.records.catalog import VersionRecord
from adapters_registry.registry import Registry
from server.errors import APIError, SlotTimeout, Unavailable
from server.residency import states
from server.residency.fetches import Fetches
from server.residency.slots import EngineSlots, Limits
from server.residency.states import State, Tier
from server.tenancy.prompt_queue import PromptQueue
from tests.server.fake_engine import FakeEngine
from tests.tiny import AdapterFactory

SLOTS, HOST = 2, 4
LIMITS = Limits(
    slots=SLOTS,
    max_running_per_tenant=8,
    host=HOST,
    quantum_seconds=0.05,
    linger_seconds=0.0,
    slot_wait_seconds=2.0,
    load_seconds=2.0,
)


@pytest.fixture
def versions(registry: Registry, make_adapter: AdapterFactory) -> list[VersionRecord]:
    found = []
    for number in range(8):
        stage = partial(copytree, make_adapter(seed=number), dirs_exist_ok=True)
        version, _ = registry.register("default", f"n{number}", "test", stage)
        facts = registry.check_files(version)
        found.append(registry.accept(version, facts))
    return found


def make(registry: Registry, engine: FakeEngine, limits: Limits = LIMITS) -> EngineSlots:
    engine.max_loras = limits.slots
    return EngineSlots(engine, registry.content, Fetches(registry.content), limits)


@pytest.fixture
def slots(registry: Registry, engine: FakeEngine) -> EngineSlots:
    return make(registry, engine)


async def touch(slots: EngineSlots, version: VersionRecord) -> None:
    async with slots.lease(version, version.tenant):
        pass


@asynccontextmanager
async def held(slots: EngineSlots, version: VersionRecord) -> AsyncIterator[Callable[[], None]]:
    """A request of its own task that runs until it is let go."""
    running, may_end = asyncio.Event(), asyncio.Event()

    async def run() -> None:
        async with slots.lease(version, version.tenant):
            running.set()
            await may_end.wait()

    task = asyncio.create_task(run())
    await running.wait()
    try:
        yield may_end.set
    finally:
        may_end.set()
        await task


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not is_so():
            await asyncio.sleep(0.005)


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
        async with slots.lease(version, tenant), turns.turn(tenant, 1, 10):
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
    def waiting() -> float:
        return REGISTRY.get_sample_value("loraplex_waiting", {"reason": "slot"}) or 0.0

    slots = make(registry, engine, replace(LIMITS, max_running_per_tenant=1))
    async with held(slots, versions[0]):
        before = waiting()
        second = asyncio.create_task(touch(slots, versions[0]))
        await asyncio.sleep(0.01)
        assert waiting() == before + 1
    await second
    assert waiting() == before


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


async def test_a_failed_load_fails_its_own_and_pauses(
    slots: EngineSlots,
    engine: FakeEngine,
    versions: list[VersionRecord],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(states, "FIRST_PAUSE_SECONDS", 0.3)
    engine.fails_to_load, engine.load_seconds = {"default/n0@1"}, 0.01
    asked = [asyncio.create_task(touch(slots, v)) for v in [*versions[:2], versions[0]]]
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(result, APIError) for result in results] == [True, False, True]
    with pytest.raises(Unavailable) as error:
        await touch(slots, versions[0])
    assert error.value.retry_after_seconds >= 1
    assert engine.loads.count("default/n0@1") == 1
    engine.fails_to_load = set()
    await asyncio.sleep(0.35)
    await touch(slots, versions[0])
    assert slots.host.states[versions[0].version_id].failures == 0


async def test_a_load_that_takes_too_long_fails_only_its_own(
    registry: Registry, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    slots = make(registry, engine, Limits(2, 8, 4, 0.0, 0.0, 60.0, load_seconds=0.5))
    await touch(slots, versions[1])
    engine.load_seconds = 10.0
    with pytest.raises(Unavailable, match=r"more than 0\.5 s"):
        await touch(slots, versions[0])
    assert engine.evicted == ["default/n0@1"], "or the engine would have it unknown to us"
    await touch(slots, versions[1])


async def test_dismissed_versions_leave_with_their_last_request(
    slots: EngineSlots, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    async with held(slots, versions[0]):
        await slots.drain(versions[0])
        assert versions[0].version_id in engine.slots
        async with held(slots, versions[1]):
            pass
    await until(lambda: versions[0].version_id not in engine.host)
    await slots.drain(versions[1])
    assert not engine.host
    assert not slots.host.versions, "nothing is remembered of them"


async def test_requests_on_a_retired_version_are_ended_at_the_deadline(
    slots: EngineSlots, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    async with held(slots, versions[0]):
        await slots.drain(versions[0], retired=True, deadline_seconds=0.01)
        assert engine.aborted == ["default/n0@1"]
    await until(lambda: not engine.host)


async def test_a_version_wanted_in_its_last_moment_still_leaves(
    slots: EngineSlots, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    async with held(slots, versions[0]):
        retirement = asyncio.create_task(
            slots.drain(versions[0], retired=True, deadline_seconds=60)
        )
        await asyncio.sleep(0)
        await touch(slots, versions[0])  # resolved before it was retired
    await until(lambda: not engine.host)
    retirement.cancel()


async def test_a_version_is_dismissed_while_it_loads(
    slots: EngineSlots, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    engine.load_seconds = 0.05
    preparing = asyncio.create_task(slots.prefetch(versions[0]))
    await asyncio.sleep(0.01)
    await slots.drain(versions[0])
    await preparing
    assert not engine.host


async def test_prefetching_sends_off_nobody_who_is_needed(
    slots: EngineSlots, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    async with held(slots, versions[0]), held(slots, versions[1]):
        for version in versions[2:6]:
            await slots.prefetch(version)
    assert {versions[0].version_id, versions[1].version_id} <= engine.host
    assert len(engine.host) == HOST
    assert slots.tier_of(versions[5]) is Tier.HOST


async def test_a_restarted_engine_is_told_nothing_of_before(
    slots: EngineSlots, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    async with held(slots, versions[0]), held(slots, versions[1]) as let_go:
        waiting = asyncio.create_task(touch(slots, versions[2]))
        await asyncio.sleep(0.1)
        loads = list(engine.loads)
        engine.generation += 1
        let_go()
        with pytest.raises(Unavailable, match="restarted meanwhile"):
            await waiting
    assert engine.loads == loads


async def test_what_leaves_a_dead_engine_stays_in_the_next(
    slots: EngineSlots, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    async with held(slots, versions[0]):
        await slots.drain(versions[0])
        engine.generation += 1
    await until(lambda: not slots.host.versions)
    assert engine.evicted == []


async def test_lost_files_are_said(
    slots: EngineSlots, registry: Registry, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    path: Path = registry.content.path(versions[0].digest)
    registry.content.discard(versions[0].digest)
    assert not path.exists()
    with pytest.raises(APIError) as error:
        await touch(slots, versions[0])
    assert error.value.status == 503
    assert slots.host.states.has(versions[0].version_id, State.FAILED)
    assert not engine.loads
