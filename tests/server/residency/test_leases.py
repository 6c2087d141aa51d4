import asyncio
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from adapters_registry.records.catalog import VersionRecord
from adapters_registry.registry import Registry
from server.errors import Unavailable
from server.residency.leases import Leases
from server.settings import Settings
from tests.server.fake_engine import FakeEngine


def num_leases() -> float | None:
    return REGISTRY.get_sample_value("loraplex_leases", {"adapter": "default/home"})


async def hold(adapters: Leases, version: VersionRecord) -> None:
    async with adapters.lease(version, "default"):
        pass


async def test_a_lease_lasts_until_it_is_left(
    registry: Registry, engine: FakeEngine, home: VersionRecord
) -> None:
    adapters = Leases.of(Settings(max_loras=4), engine, registry)
    async with adapters.lease(home, "default"), adapters.lease(home, "default"):
        assert num_leases() == 2
    assert num_leases() == 0


async def test_a_client_that_goes_away_does_not_cancel_the_load_of_others(
    registry: Registry, engine: FakeEngine, home: VersionRecord
) -> None:
    adapters, engine.load_seconds = Leases.of(Settings(max_loras=4), engine, registry), 0.05
    impatient, patient = (asyncio.create_task(hold(adapters, home)) for _ in range(2))
    await asyncio.sleep(0.01)
    impatient.cancel()
    await patient
    assert engine.loads == ["default/home@1"]
    assert num_leases() == 0


async def test_a_load_that_is_cancelled_at_the_end_of_the_server_is_no_failure(
    registry: Registry,
    engine: FakeEngine,
    home: VersionRecord,
    caplog: pytest.LogCaptureFixture,
) -> None:
    adapters, engine.load_seconds = Leases.of(Settings(max_loras=4), engine, registry), 60
    before, _ = asyncio.all_tasks(), asyncio.create_task(hold(adapters, home))
    await asyncio.sleep(0.05)
    tasks = asyncio.all_tasks() - before
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(tasks) > 1
    assert all(task.cancelled() for task in tasks)
    assert not caplog.records


async def test_no_lease_is_kept_when_the_load_fails(
    registry: Registry, engine: FakeEngine, home: VersionRecord
) -> None:
    adapters, engine.fails_to_load = (
        Leases.of(Settings(max_loras=4), engine, registry),
        {"default/home@1"},
    )
    with pytest.raises(Unavailable):
        async with adapters.lease(home, "default"):
            raise AssertionError("a version that could not be loaded was leased")
    assert num_leases() == 0


async def test_an_engine_restarted_during_a_fetch_is_not_told_to_load(
    registry: Registry, engine: FakeEngine, home: VersionRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new engine would have a version that nobody knows of."""
    adapters, fetch = Leases.of(Settings(max_loras=4), engine, registry), registry.content.fetch

    def restart_meanwhile(digest: str) -> Path:
        engine.generation += 1
        return fetch(digest)

    with monkeypatch.context() as patch:
        patch.setattr(registry.content, "fetch", restart_meanwhile)
        with pytest.raises(Unavailable, match="restarted meanwhile"):
            async with adapters.lease(home, "default"):
                raise AssertionError("leased without a hold")
    assert engine.loads == []
    async with adapters.lease(home, "default"):
        assert engine.loads == ["default/home@1"]
