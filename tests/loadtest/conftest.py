from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from loadtest.drive.random_adapters import LlamaShape
from loadtest.drive.run import Target, run
from loadtest.outcome.run_record import Run
from loadtest.plan.scenario import Scenario
from tests.loadtest.stub_server import KEY, Stub

TINY = LlamaShape(layers=1, hidden=8, mlp=8, kv=8)
SHORT = {
    "question": "Does it work?",
    "seed": 1,
    "duration_seconds": 0.6,
    "arrivals": {"process": "poisson", "rate": 60},
    "adapters": {"count": 3, "base_share": 0.2},
    "requests": {"output": {"kind": "uniform", "min": 2, "max": 6}},
    "limits": {"stall_seconds": 20.0, "request_seconds": 30.0, "drain_seconds": 30.0},
}


@dataclass
class StubServer:
    """The stub and where it listens."""

    stub: Stub
    url: str

    def target(self, **changes: Any) -> Target:
        return Target(self.url, KEY, shape=TINY, **changes)

    async def run(self, **changes: Any) -> Run:
        scenario = Scenario.model_validate({**SHORT, **changes})
        return await run(scenario, self.target(), asyncio.Event())


@pytest_asyncio.fixture
async def server() -> AsyncIterator[StubServer]:
    stub = Stub()
    listening = await stub.start()
    port = listening.sockets[0].getsockname()[1]
    yield StubServer(stub, f"http://127.0.0.1:{port}")
    listening.close()


@pytest.fixture
def scenario() -> Callable[..., Scenario]:
    """A short scenario, with changes."""
    return lambda **changes: Scenario.model_validate({**SHORT, **changes})
