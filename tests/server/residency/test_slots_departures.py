"""Versions that fail, leave or are lost: what becomes of their slots and their requests."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from adapters_registry.records.catalog import VersionRecord
from adapters_registry.registry import Registry
from server.errors import APIError, Unavailable
from server.residency.slots import EngineSlots, Limits
from server.residency.states import FIRST_PAUSE_SECONDS, State, Tier
from tests.server.fake_engine import FakeEngine
from tests.server.residency.engine_slots import HOST, LIMITS, SLOTS, held, make, touch, until


async def test_a_failed_load_fails_its_own_and_pauses(
    slots: EngineSlots, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    engine.fails_to_load, engine.load_seconds = {"default/n0@1"}, 0.01
    asked = [asyncio.create_task(touch(slots, v)) for v in [*versions[:2], versions[0]]]
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(result, APIError) for result in results] == [True, False, True]
    with pytest.raises(Unavailable) as error:
        await touch(slots, versions[0])
    assert error.value.retry_after_seconds >= 1
    assert engine.loads.count("default/n0@1") == 1
    engine.fails_to_load = set()
    await asyncio.sleep(FIRST_PAUSE_SECONDS)
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


async def test_nothing_is_remembered_of_a_retired_version_whose_clients_left_before_its_turn(
    registry: Registry, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    slots, waited_for = make(registry, engine, replace(LIMITS, host=SLOTS)), versions[2]
    async with held(slots, versions[0]), held(slots, versions[1]):
        waiting = asyncio.create_task(touch(slots, waited_for))
        await asyncio.sleep(0)
        await slots.drain(waited_for, retired=True)
        assert waited_for.version_id in slots.host.versions, "a request still waits for it"
        waiting.cancel()
        await asyncio.wait([waiting])
    assert waited_for.version_id not in slots.host.versions
    assert waited_for.version_id not in dict(slots.host.states.items())


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
