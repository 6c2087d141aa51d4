"""Versions, and the slots of one engine."""

from __future__ import annotations

from functools import partial
from shutil import copytree

import pytest

from adapters_registry.records.catalog import VersionRecord
from adapters_registry.registry import Registry
from server.residency.slots import EngineSlots
from tests.server.fake_engine import FakeEngine
from tests.server.residency.engine_slots import make
from tests.tiny import AdapterFactory


@pytest.fixture
def versions(registry: Registry, make_adapter: AdapterFactory) -> list[VersionRecord]:
    found = []
    for number in range(8):
        stage = partial(copytree, make_adapter(seed=number), dirs_exist_ok=True)
        version, _ = registry.register("default", f"n{number}", "test", stage)
        facts = registry.check_files(version)
        found.append(registry.accept(version, facts))
    return found


@pytest.fixture
def slots(registry: Registry, engine: FakeEngine) -> EngineSlots:
    return make(registry, engine)
