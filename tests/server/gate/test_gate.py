"""The gate on a fake engine: verdicts, and an engine that is late, dies, or goes away."""

import asyncio
from functools import partial
from pathlib import Path
from shutil import copytree, rmtree

import pytest

from adapters_registry import verdicts
from adapters_registry.errors import ContentUnavailable, Reason
from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.tables import VersionState
from adapters_registry.registry import Registry
from server.engine.interface import EngineState
from server.errors import Unavailable
from server.gate import gate as gate_module
from server.gate.gate import MAX_DEATHS, MAX_SMOKE_TESTS, Gate
from server.residency.leases import Leases
from tests.server.fake_engine import FakeEngine
from tests.tiny import AdapterFactory


@pytest.fixture
def gate(
    registry: Registry,
    engine: FakeEngine,
    leases: Leases,
    monkeypatch: pytest.MonkeyPatch,
) -> Gate:
    for name in ("RETRY_SECONDS", "ELSEWHERE_SECONDS"):
        monkeypatch.setattr(gate_module, name, 0.001)
    return Gate(registry, engine, leases)


def register(registry: Registry, source: Path, name: str = "home") -> VersionRecord:
    stage = partial(copytree, source, dirs_exist_ok=True)
    return registry.register("default", name, "test", stage)[0]


@pytest.fixture
def pending(registry: Registry, make_adapter: AdapterFactory) -> VersionRecord:
    return register(registry, make_adapter())


def state(registry: Registry) -> VersionState:
    return registry.get_version("default", "home", 1).state


async def until(condition) -> None:  # type: ignore[no-untyped-def]
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def verdict(gate: Gate, version: VersionRecord) -> tuple[str, list[str]]:
    gate.start(version)
    version = await gate.verdict(version)
    return version.state.value, [reason["code"] for reason in version.reasons]


async def test_ready(gate: Gate, engine: FakeEngine, pending: VersionRecord) -> None:
    assert await verdict(gate, pending) == ("ready", [])
    assert engine.loads == ["default/home@1"]


async def test_files_alone_may_decide(
    gate: Gate, engine: FakeEngine, registry: Registry, make_adapter: AdapterFactory
) -> None:
    version = register(registry, make_adapter(config={"use_dora": True}))
    assert await verdict(gate, version) == ("rejected", ["unsupported_feature"])
    assert engine.loads == [], "an adapter that can't work reached the engine"


async def test_the_smoke_test_may_decide(
    gate: Gate, engine: FakeEngine, pending: VersionRecord
) -> None:
    engine.answer = engine.base_answer
    assert await verdict(gate, pending) == ("rejected", ["canary_no_effect"])
    assert not engine.host


async def test_an_engine_that_is_late_is_waited_for(
    gate: Gate, engine: FakeEngine, registry: Registry, pending: VersionRecord
) -> None:
    engine.state = EngineState.STARTING
    gate.start(pending)
    await until(lambda: state(registry) is VersionState.CHECKING)
    await asyncio.sleep(0.02)
    assert state(registry) is VersionState.CHECKING
    engine.state = EngineState.READY
    assert (await gate.verdict(pending)).state is VersionState.READY


def dying(engine: FakeEngine, times: int):  # type: ignore[no-untyped-def]
    """An engine that dies at a version's answer, and is back a moment later."""

    async def die() -> None:
        nonlocal times
        if times:
            times -= 1
            engine.state, engine.host, engine.slots = EngineState.RESTARTING, set(), set()
            asyncio.get_running_loop().call_later(0.01, revive)
            raise Unavailable("the engine died")

    def revive() -> None:
        engine.generation += 1
        engine.state = EngineState.READY

    return die


async def test_an_engine_that_dies_is_not_the_versions_fault(
    gate: Gate, engine: FakeEngine, pending: VersionRecord
) -> None:
    engine.on_ask = dying(engine, times=1)
    assert await verdict(gate, pending) == ("ready", [])
    assert engine.loads == ["default/home@1"] * 2


async def test_a_version_beside_which_the_engine_always_dies_is_refused(
    gate: Gate, engine: FakeEngine, pending: VersionRecord
) -> None:
    engine.on_ask = dying(engine, times=99)
    assert await verdict(gate, pending) == ("rejected", ["canary_engine_died"])
    assert len(engine.loads) == MAX_DEATHS


async def test_an_answer_that_comes_too_late_is_tried_again(
    gate: Gate, engine: FakeEngine, pending: VersionRecord
) -> None:
    times = 5

    async def be_late() -> None:
        nonlocal times
        times -= 1
        if times:
            raise Unavailable("no answer in time")

    engine.on_ask = be_late
    assert await verdict(gate, pending) == ("ready", [])


async def test_shutting_down_leaves_the_check_to_the_next_start(
    gate: Gate,
    engine: FakeEngine,
    leases: Leases,
    registry: Registry,
    pending: VersionRecord,
) -> None:
    hanging = asyncio.Event()

    async def hang() -> None:
        hanging.set()
        await asyncio.Event().wait()

    engine.on_ask = hang
    gate.start(pending)
    await hanging.wait()
    for check in list(gate._checks.values()):
        check.task.cancel()
    await until(lambda: not gate._checks)
    assert state(registry) is VersionState.CHECKING
    assert [version.number for version in registry.unfinished()] == [1]
    engine.on_ask = None
    assert await verdict(Gate(registry, engine, leases), pending) == ("ready", [])


async def test_only_so_many_smoke_tests_at_a_time(
    gate: Gate, engine: FakeEngine, registry: Registry, make_adapter: AdapterFactory
) -> None:
    most, now, evictable = 0, 0, asyncio.Event()

    async def count() -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await evictable.wait()
        now -= 1

    engine.on_ask = count
    versions = [register(registry, make_adapter(seed=n), f"n{n}") for n in range(6)]
    for version in versions:
        gate.start(version)
    await until(lambda: most == MAX_SMOKE_TESTS)
    await asyncio.sleep(0.02)
    evictable.set()
    verdicts = await asyncio.gather(*map(gate.verdict, versions))
    assert {version.state for version in verdicts} == {VersionState.READY}
    assert most == MAX_SMOKE_TESTS


async def test_what_cannot_be_read_is_put_off_and_not_refused(
    gate: Gate, registry: Registry, make_adapter: AdapterFactory
) -> None:
    source = make_adapter()
    pending = register(registry, source)
    rmtree(registry.content.path(pending.digest))
    with pytest.raises(ContentUnavailable):
        await verdict(gate, pending)
    assert state(registry) is VersionState.PENDING
    again = register(registry, source)  # the files are there again
    assert await verdict(gate, again) == ("ready", [])


async def test_one_load_that_fails_is_no_verdict(
    gate: Gate, engine: FakeEngine, pending: VersionRecord
) -> None:
    engine.fails_to_load.add(pending.public_name)
    gate.start(pending)
    await until(lambda: engine.loads)
    engine.fails_to_load.clear()
    assert await verdict(gate, pending) == ("ready", [])


async def test_a_version_that_the_engine_cannot_load_is_refused(
    gate: Gate, engine: FakeEngine, pending: VersionRecord
) -> None:
    engine.fails_to_load.add(pending.public_name)
    assert await verdict(gate, pending) == ("rejected", ["canary_not_loadable"])


async def test_the_verdict_of_another_server_is_waited_for(
    gate: Gate, engine: FakeEngine, registry: Registry, pending: VersionRecord
) -> None:
    registry.apply(verdicts.claim, pending.version_id, "another")
    gate.start(pending)
    await asyncio.sleep(0.01)
    assert state(registry) is VersionState.CHECKING
    registry.apply(verdicts.reject, pending.version_id, "another", [Reason("theirs", "theirs")])
    assert (await gate.verdict(pending)).reasons[0]["code"] == "theirs"
    assert engine.loads == []


async def test_what_no_server_checks_is_taken_up(
    gate: Gate, registry: Registry, pending: VersionRecord, make_adapter: AdapterFactory
) -> None:
    theirs = register(registry, make_adapter(seed=2), "theirs")
    registry.apply(verdicts.claim, theirs.version_id, "another")
    taking_up = asyncio.create_task(gate.take_up(0.001))
    await until(lambda: state(registry) is VersionState.READY)
    assert registry.get_version("default", "theirs", 1).state is VersionState.CHECKING
    taking_up.cancel()
