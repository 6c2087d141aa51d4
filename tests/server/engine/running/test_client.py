"""Readiness and the watch for a hang, on a client whose engine does what the test says."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from server.engine.errors import map_exception
from server.engine.running.client import PING_SECONDS, EngineClient
from server.engine.supervisor import pause_before_restart
from server.errors import Unavailable


class Engine:
    """Answers with one token of a given log-probability, or not at all while `hangs`."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        """What running requests were ended with."""
        self.output_processor = SimpleNamespace(
            request_states={},
            external_req_ids=defaultdict(list),
            process_outputs=lambda *_: None,
            abort_requests=lambda *_, **__: [],
            propagate_error=self.errors.append,
        )
        self.engine_core = SimpleNamespace(get_output_async=None)
        self.vllm_config = SimpleNamespace(
            structured_outputs_config=SimpleNamespace(backend="auto"), speculative_config=None
        )
        self.logprob, self.hangs, self.errored = -1.0, False, False
        self.num_probes = self.num_calls = 0
        self.priorities: list[int] = []

    async def generate(
        self, _prompt: Any, _sampling: Any, _name: str, priority: int
    ) -> AsyncIterator[Any]:
        self.num_probes += 1
        self.priorities.append(priority)
        if self.hangs:
            await asyncio.Event().wait()
        logprobs = [{7: SimpleNamespace(logprob=self.logprob)}]
        yield SimpleNamespace(
            outputs=[SimpleNamespace(token_ids=[7], logprobs=logprobs, finish_reason=None)]
        )

    async def abort(self, request_id: str) -> None:
        """Do nothing: no request that a client sent runs here."""

    async def collective_rpc(self, _method: str, args: Any) -> list[Any]:
        self.num_calls += 1
        if self.hangs:
            await asyncio.Event().wait()
        return [{}]


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def client(engine: Engine) -> EngineClient:
    llm: Any = engine
    return EngineClient(llm, poll_seconds=0.001)


async def test_an_idle_engine_is_ready_if_it_gives_a_token(
    client: EngineClient, engine: Engine
) -> None:
    await client.require_progress()
    await client.require_progress()
    assert engine.num_probes == 1, "a good probe counts for a moment"
    assert engine.priorities == [-1], "it goes ahead of clients' requests"


async def test_a_busy_engine_is_ready_though_its_probe_waits(
    client: EngineClient, engine: Engine
) -> None:
    """Steps end, and the probe finds no memory: that is load, and no fault."""
    engine.hangs = True
    for _ in range(3):
        client.progress.step(time.monotonic())
        async with asyncio.timeout(10):
            await client.require_progress()
        await asyncio.sleep(0)
    assert engine.num_probes == 1, "probes on the side don't pile up"
    client.end_tasks()


async def test_a_step_that_ends_while_the_probe_waits_is_progress(
    client: EngineClient, engine: Engine
) -> None:
    """The first step of a long prompt may take longer than a kubelet waits for its probe."""
    engine.hangs = True
    asked = asyncio.create_task(client.require_progress())
    while not engine.num_probes:
        await asyncio.sleep(0)
    assert not asked.done()
    client.progress.step(time.monotonic())
    async with asyncio.timeout(10):
        await asked
    client.end_tasks()


async def test_an_idle_engine_that_gives_no_token_is_not_ready(
    client: EngineClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EngineClient._generate_one_token, "__defaults__", (0.01,))
    engine.hangs = True
    with pytest.raises(Unavailable, match="no token"):
        await client.require_progress()


async def test_a_probe_of_an_engine_that_is_given_up_says_so(
    client: EngineClient, engine: Engine
) -> None:
    engine.hangs = True
    asked = asyncio.create_task(client.require_progress())
    while not engine.num_probes:
        await asyncio.sleep(0)
    client.end_tasks()
    with pytest.raises(Unavailable, match="given up"):
        await asked
    [error] = engine.errors
    assert map_exception(error).status == 503, "whoever waits for an answer waits no longer"


async def test_nan_is_found_while_the_engine_is_busy(client: EngineClient, engine: Engine) -> None:
    engine.logprob = math.nan
    client.progress.step(time.monotonic())
    await client.require_progress()
    async with asyncio.timeout(10):
        assert "NaN" in await client.watch(hang_seconds=60)


async def test_a_hung_engine_is_noticed(client: EngineClient, engine: Engine) -> None:
    engine.hangs = True
    async with asyncio.timeout(30):
        assert "hung" in await client.watch(hang_seconds=0.1)
    assert engine.num_calls == 1, "it was asked for a sign of life"
    client.end_tasks()


async def test_a_silent_engine_that_answers_when_asked_does_not_hang(
    client: EngineClient, engine: Engine
) -> None:
    watching = asyncio.create_task(client.watch(hang_seconds=0.1))
    while engine.num_calls < 3:
        await asyncio.sleep(0.01)
    assert not watching.done()
    engine.errored = True
    async with asyncio.timeout(10):
        assert await watching == "it died"


def test_pauses_grow_and_stay() -> None:
    assert [pause_before_restart(number) for number in (1, 2, 3, 4)] == [1, 5, 20, 20]
    assert PING_SECONDS < 60


async def test_a_condemned_engine_answers_nothing_and_is_restarted(client: EngineClient) -> None:
    before = client.errored
    client.condemn("the database was restored")
    assert (before, client.errored) == (False, True), "from here requests get a 503"
    assert await client.watch(60) == "the database was restored"
