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

from adapters_registry.catalog import VersionRecord
from adapters_registry.records import Registry
from server import residency
from server.errors import APIError, SlotTimeout, Unavailable
from server.metering import METER, Meter
from server.residency import State, Tier
from server.residents import Limits, Residents
from server.turns import Turns
from server.workers import Workers
from tests.server.fake_engine import FakeEngine
from tests.tiny import AdapterFactory

SLOTS, HOST = 2, 4
LIMITS = Limits(
    slots=SLOTS,
    room=8,
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


def make(registry: Registry, engine: FakeEngine, limits: Limits = LIMITS) -> Residents:
    engine.max_loras = limits.slots
    return Residents(engine, registry.content, Workers("fetch", 4), limits)


@pytest.fixture
def residents(registry: Registry, engine: FakeEngine) -> Residents:
    return make(registry, engine)


async def touch(residents: Residents, version: VersionRecord) -> None:
    async with residents.hold(version):
        pass


@asynccontextmanager
async def held(residents: Residents, version: VersionRecord) -> AsyncIterator[Callable[[], None]]:
    """A request of its own task that runs until it is let go."""
    running, may_end = asyncio.Event(), asyncio.Event()

    async def run() -> None:
        async with residents.hold(version):
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
    residents: Residents, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    engine.load_seconds = 0.02
    await asyncio.gather(*(touch(residents, versions[0]) for _ in range(10)))
    assert engine.loads == ["default/n0@1"]


async def test_each_tier_is_named(
    residents: Residents, registry: Registry, versions: list[VersionRecord]
) -> None:
    assert residents.tier_of(versions[0]) is Tier.DISK
    await touch(residents, versions[0])
    assert residents.tier_of(versions[0]) is Tier.SLOT
    for version in versions[1 : SLOTS + 1]:
        await touch(residents, version)
    assert residents.tier_of(versions[0]) is Tier.HOST
    for version in versions[SLOTS + 1 : HOST + 1]:
        await touch(residents, version)
    assert residents.tier_of(versions[0]) is Tier.DISK
    registry.content.discard(versions[0].digest)
    assert residents.tier_of(versions[0]) is Tier.ORIGIN


async def test_slots_and_host_memory_keep_to_their_budgets(
    residents: Residents, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    engine.load_seconds, most = 0.001, [0, 0]

    async def ask(version: VersionRecord) -> None:
        async with residents.hold(version):
            assert version.engine_id in engine.slots
            most[0] = max(most[0], len(engine.slots))
            most[1] = max(most[1], len(engine.host))
            await asyncio.sleep(0.002)
            assert version.engine_id in engine.slots, "it kept its slot"

    await asyncio.gather(*(ask(versions[n % 8]) for n in range(160)))
    assert most[0] <= SLOTS
    assert most[1] <= HOST + 1, "who leaves may still be there while another comes"
    assert not any(r.in_use for _, r in residents.host.residency.items())


async def test_who_waits_too_long_is_told(
    registry: Registry, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    limits = Limits(1, 8, 4, 0.0, 0.0, slot_wait_seconds=0.05, load_seconds=2.0)
    residents = make(registry, engine, limits)
    async with held(residents, versions[0]):
        with pytest.raises(SlotTimeout):
            await touch(residents, versions[1])
        await touch(residents, versions[0])
    await touch(residents, versions[1])


async def test_a_flood_whose_prompts_take_turns_gives_its_slots_back_soon(
    registry: Registry, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    limits = replace(LIMITS, room=4, quantum_seconds=0.02)
    residents, turns, ended = make(registry, engine, limits), Turns(2, 100), []

    async def ask(version: VersionRecord, tenant: str) -> None:
        METER.set(Meter(turns, tenant))
        async with residents.hold(version), turns.turn(tenant, 1, 10):
            await asyncio.sleep(0.002)
        ended.append(tenant)

    async with asyncio.TaskGroup() as running:
        for number in range(400):
            running.create_task(ask(versions[number % SLOTS], "flood"))
        await until(lambda: len(ended) >= 2)
        await running.create_task(ask(versions[SLOTS], "calm"))
        assert len(ended) < 200
    assert len(ended) == 401


async def test_behind_requests_of_ones_own_one_waits_on(
    registry: Registry, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    limits = replace(LIMITS, room=1, slot_wait_seconds=0.02)
    residents = make(registry, engine, limits)
    async with held(residents, versions[0]) as let_go:
        second = asyncio.create_task(touch(residents, versions[0]))
        await asyncio.sleep(0.05)
        assert not second.done()
        let_go()
        await second


async def test_a_client_that_leaves_frees_its_place(
    registry: Registry, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    residents = make(registry, engine, Limits(1, 8, 4, 0.0, 0.0, 60.0, 2.0))
    async with held(residents, versions[0]) as let_go:
        first = asyncio.create_task(touch(residents, versions[1]))
        second = asyncio.create_task(touch(residents, versions[2]))
        await asyncio.sleep(0.01)
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        let_go()
        await second
    assert not any(r.in_use for _, r in residents.host.residency.items())
    assert engine.slots == {versions[2].engine_id}


async def test_a_pinned_version_keeps_its_slot(
    residents: Residents, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    residents.slots.pin(versions[0].engine_id)
    residents.host.residency[versions[0].engine_id].pinned = True
    for version in [*versions, *versions[1:]]:
        await touch(residents, version)
    assert residents.tier_of(versions[0]) is Tier.SLOT
    assert engine.loads.count("default/n0@1") == 1


async def test_a_failed_load_fails_its_own_and_pauses(
    residents: Residents,
    engine: FakeEngine,
    versions: list[VersionRecord],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(residency, "FIRST_PAUSE_SECONDS", 0.3)
    engine.fails_to_load, engine.load_seconds = {"default/n0@1"}, 0.01
    asked = [asyncio.create_task(touch(residents, v)) for v in [*versions[:2], versions[0]]]
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(result, APIError) for result in results] == [True, False, True]
    with pytest.raises(Unavailable) as error:
        await touch(residents, versions[0])
    assert error.value.retry_after_seconds >= 1
    assert engine.loads.count("default/n0@1") == 1
    engine.fails_to_load = set()
    await asyncio.sleep(0.35)
    await touch(residents, versions[0])
    assert residents.host.residency[versions[0].engine_id].failures == 0


async def test_a_load_that_takes_too_long_fails_only_its_own(
    registry: Registry, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    residents = make(registry, engine, Limits(2, 8, 4, 0.0, 0.0, 60.0, load_seconds=0.5))
    await touch(residents, versions[1])
    engine.load_seconds = 10.0
    with pytest.raises(Unavailable, match=r"more than 0\.5 s"):
        await touch(residents, versions[0])
    assert engine.evicted == ["default/n0@1"], "or the engine would have it unknown to us"
    await touch(residents, versions[1])


async def test_dismissed_versions_leave_with_their_last_request(
    residents: Residents, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    async with held(residents, versions[0]):
        await residents.dismiss(versions[0])
        assert versions[0].engine_id in engine.slots
        async with held(residents, versions[1]):
            pass
    await until(lambda: versions[0].engine_id not in engine.host)
    await residents.dismiss(versions[1])
    assert not engine.host
    assert not residents.host.versions, "nothing is remembered of them"


async def test_requests_on_a_retired_version_are_ended_at_the_deadline(
    residents: Residents, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    async with held(residents, versions[0]):
        await residents.dismiss(versions[0], retired=True, deadline_seconds=0.01)
        assert engine.aborted == ["default/n0@1"]
    await until(lambda: not engine.host)


async def test_a_version_wanted_in_its_last_moment_still_leaves(
    residents: Residents, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    async with held(residents, versions[0]):
        retirement = asyncio.create_task(
            residents.dismiss(versions[0], retired=True, deadline_seconds=60)
        )
        await asyncio.sleep(0)
        await touch(residents, versions[0])  # resolved before it was retired
    await until(lambda: not engine.host)
    retirement.cancel()


async def test_a_version_is_dismissed_while_it_loads(
    residents: Residents, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    engine.load_seconds = 0.05
    preparing = asyncio.create_task(residents.prepare(versions[0]))
    await asyncio.sleep(0.01)
    await residents.dismiss(versions[0])
    await preparing
    assert not engine.host


async def test_prefetching_sends_off_nobody_who_is_needed(
    residents: Residents, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    async with held(residents, versions[0]), held(residents, versions[1]):
        for version in versions[2:6]:
            await residents.prepare(version)
    assert {versions[0].engine_id, versions[1].engine_id} <= engine.host
    assert len(engine.host) == HOST
    assert residents.tier_of(versions[5]) is Tier.HOST


async def test_a_restarted_engine_is_told_nothing_of_before(
    residents: Residents, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    async with held(residents, versions[0]), held(residents, versions[1]) as let_go:
        waiting = asyncio.create_task(touch(residents, versions[2]))
        await asyncio.sleep(0.1)
        loads = list(engine.loads)
        engine.generation += 1
        let_go()
        with pytest.raises(Unavailable, match="restarted meanwhile"):
            await waiting
    assert engine.loads == loads


async def test_what_leaves_a_dead_engine_stays_in_the_next(
    residents: Residents, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    async with held(residents, versions[0]):
        await residents.dismiss(versions[0])
        engine.generation += 1
    await until(lambda: not residents.host.versions)
    assert engine.evicted == []


async def test_lost_files_are_said(
    residents: Residents, registry: Registry, engine: FakeEngine, versions: list[VersionRecord]
) -> None:
    path: Path = registry.content.path(versions[0].digest)
    registry.content.discard(versions[0].digest)
    assert not path.exists()
    with pytest.raises(APIError) as error:
        await touch(residents, versions[0])
    assert error.value.status == 503
    assert residents.host.residency.has(versions[0].engine_id, State.FAILED)
    assert not engine.loads
