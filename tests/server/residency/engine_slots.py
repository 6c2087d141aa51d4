"""Requests on one engine's slots, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from adapters_registry.records.catalog import VersionRecord
from adapters_registry.registry import Registry
from server.residency.fetches import Fetches
from server.residency.slots import EngineSlots, Limits
from tests.server.fake_engine import FakeEngine

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


def make(registry: Registry, engine: FakeEngine, limits: Limits = LIMITS) -> EngineSlots:
    engine.max_loras = limits.slots
    return EngineSlots(engine, registry.content, Fetches(registry.content), limits)


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
