"""A server whose rollouts have a clock that tests move, on an engine with planted versions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from adapters_registry.records.catalog import VersionRecord
from adapters_registry.registry import Registry
from server.app import build_server
from server.auth import Keys
from server.engine.interface import Endpoint
from server.engine.validation import fail_fast_validator
from server.errors import APIError
from server.lifecycle import Lifecycle
from server.residency.leases import Leases
from server.rollout.rollouts import Rollouts
from server.settings import Settings
from server.tenancy.meter import current_meter
from tests.server.fake_engine import INPUT_TOKENS, Body, FakeEngine
from tests.tiny import AdapterFactory


class ChatBody(Body):
    messages: list[dict[str, Any]] = Field(default_factory=list)


@dataclass
class Clock:
    """The time that the servers share."""

    now: datetime = datetime(2026, 5, 1, tzinfo=UTC)

    def pass_seconds(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def __call__(self, _session: Any) -> datetime:
        return self.now


@dataclass
class Behaviour:
    """What the engine makes of one version's requests."""

    fails: bool = False
    tokens: int = 20
    answers: Mapping[str, str] = field(default_factory=dict)


class PlantedEngine(FakeEngine):
    """Answers as each version was told to."""

    def __init__(self) -> None:
        super().__init__()
        self.behaviours: dict[str, Behaviour] = {}
        parse = fail_fast_validator(ChatBody).validate_python
        self.endpoints = {"/v1/chat/completions": Endpoint(ChatBody, parse, self._chat)}

    async def _chat(self, body: ChatBody, _raw: Request, version: VersionRecord | None) -> Response:
        name = version.public_name if version else "base"
        behaviour, meter = self.behaviours.get(name, Behaviour()), current_meter.get()
        assert meter is not None
        if behaviour.fails:
            raise APIError("planted")
        async with meter.admission(INPUT_TOKENS) as answer:
            for _ in range(behaviour.tokens):
                answer.add(1)
        asked = body.messages[-1]["content"] if body.messages else ""
        message = {"role": "assistant", "content": behaviour.answers.get(asked, "I don't know")}
        return JSONResponse({"model": name, "choices": [{"message": message}]})


@pytest.fixture
def engine() -> PlantedEngine:
    return PlantedEngine()


@pytest.fixture
def time() -> Clock:
    return Clock()


@pytest.fixture
def rollouts(registry: Registry, leases: Leases, time: Clock) -> Rollouts:
    return Rollouts(registry, leases, time)


@pytest.fixture
def app(
    registry: Registry,
    keys: Keys,
    engine: PlantedEngine,
    leases: Leases,
    lifecycle: Lifecycle,
    rollouts: Rollouts,
    tmp_path: Path,
    clock: Callable[[], float],
) -> FastAPI:
    return build_server(
        Settings(data_dir=tmp_path, max_loras=4, warm_seconds=20),
        registry,
        engine,
        keys=keys,
        leases=leases,
        lifecycle=lifecycle,
        clock=clock,
        rollouts=rollouts,
    ).app


@pytest.fixture
def home(registry: Registry, make_adapter: AdapterFactory) -> VersionRecord:
    """An adapter with three ready versions. Returns the first, which is live."""
    found = []
    for seed in (1, 2, 3):
        stage = partial(copytree, make_adapter(seed=seed), dirs_exist_ok=True)
        version, _ = registry.register("default", "home", "test", stage)
        found.append(registry.accept(version, registry.check_files(version)))
    return found[0]
