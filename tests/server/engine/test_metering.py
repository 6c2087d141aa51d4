"""Tokens are counted where they leave the engine, whatever the handlers ask for."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from server.engine.metering import meter
from server.tenancy.meter import Meter, current_meter
from server.tenancy.prompt_queue import PromptQueue

PROMPT = {"prompt_token_ids": [1, 2, 3]}
NUM_CHOICES = NUM_STEPS = 2


class Client:
    """Gives two choices three tokens in each of two steps; `generate` shows them at the end."""

    def __init__(self) -> None:
        self.output_processor = SimpleNamespace(request_states={}, process_outputs=self._process)
        self.num_closed = self.num_processed = 0
        self.may_end = asyncio.Event()
        self.may_end.set()

    def _process(self, outputs: list[Any], timestamp: float) -> int:
        self.num_processed += len(outputs)
        return len(outputs)

    async def generate(self, _prompt: Any, _sampling: Any, request_id: str) -> AsyncIterator[str]:
        states = self.output_processor.request_states
        choices = range(NUM_CHOICES)
        ids = [f"{choice}_{request_id}-{len(states)}" for choice in choices]
        for choice in choices:
            states[ids[choice]] = SimpleNamespace(external_req_id=request_id, request_index=choice)
        outputs = [SimpleNamespace(request_id=i, new_token_ids=[7, 7, 7]) for i in (*ids, "gone")]
        try:
            for _ in range(NUM_STEPS):
                assert self.output_processor.process_outputs(outputs, timestamp=1.0) == 3
            await self.may_end.wait()
            yield "an answer"
        finally:
            self.num_closed += 1
            for each in ids:
                del states[each]


@pytest.fixture
def client() -> Any:
    client: Any = Client()
    meter(client)
    return client


@pytest.fixture
def current() -> Meter:
    return Meter(PromptQueue(4, 100), "acme")


async def test_tokens_are_counted_as_the_engine_gives_them(client: Any, current: Meter) -> None:
    current_meter.set(current)
    for number in (1, 2):
        assert [output async for output in client.generate(PROMPT, None, "id")] == ["an answer"]
        assert (current.input_tokens, current.output_tokens) == (3 * number, 12 * number)
    assert client.num_processed == 12


async def test_who_goes_away_is_charged_so_far_and_ends_the_request(
    client: Any, current: Meter
) -> None:
    current_meter.set(current)
    client.may_end.clear()

    async def answer() -> None:
        async for _ in client.generate(PROMPT, None, "id"):
            pass

    running = asyncio.create_task(answer())
    await asyncio.sleep(0.01)
    assert (current.output_tokens, client.num_closed) == (12, 0)
    running.cancel()
    await current.ended()
    assert (current.tokens, client.num_closed) == (15, 1)


async def test_requests_side_by_side_are_counted_apart(client: Any, current: Meter) -> None:
    async def answers(meter: Meter, request_id: str, number: int) -> None:
        current_meter.set(meter)
        for _ in range(number):
            async for _ in client.generate(PROMPT, None, request_id):
                await asyncio.sleep(0)

    other = Meter(PromptQueue(4, 100), "other")
    await asyncio.gather(answers(current, "a", 1), answers(other, "b", 3))
    assert (current.output_tokens, other.output_tokens) == (12, 36)


async def test_the_servers_own_requests_are_not_counted(client: Any) -> None:
    current_meter.set(None)
    assert [output async for output in client.generate(PROMPT, None, "id")]
