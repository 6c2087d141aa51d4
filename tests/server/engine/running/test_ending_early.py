"""A request that is ended early leaves the engine, or its queue, and its handler is told why."""

import asyncio
from typing import Any

import pytest
from vllm.exceptions import GracefulHTTPError

from server.engine.running.metering import Metering
from server.errors import Preempted
from server.tenancy.meter import Meter, current_meter
from server.tenancy.prompt_queue import PromptQueue
from tests.server.engine.running.llm_client import ANSWER, PROMPT, SAMPLING


async def test_a_request_that_is_ended_early_leaves_the_engine_and_says_why(
    client: Any, metering: Metering, current: Meter
) -> None:
    client.may_end.clear()
    current_meter.set(current)
    ended: list[str] = []
    current.on_work_over(lambda: ended.append("over"))
    answer = client.generate(PROMPT, SAMPLING, "id")
    await anext(answer)
    current.hand_over(complete=False)
    current.end_early(Preempted("another tenant waits"))
    async with asyncio.timeout(10):
        while not ended:  # though nobody reads
            await asyncio.sleep(0)
    reasons: list[str] = []

    async def read() -> None:
        async for output in answer:
            reasons.append(output.outputs[0].finish_reason)  # noqa: PERF401 (up to the error)

    with pytest.raises(GracefulHTTPError, match="another tenant waits"):
        await read()
    assert reasons == ["abort"]
    assert not client.output_processor.request_states
    with pytest.raises(Preempted):
        client.generate(PROMPT, SAMPLING, "another prompt of the same request")


async def test_a_request_that_waits_for_its_turn_can_be_ended_early(
    client: Any, metering: Metering
) -> None:
    queue = PromptQueue(1, 100)
    first, second = Meter(queue, "acme"), Meter(queue, "acme")
    client.may_end.clear()
    current_meter.set(first)
    running = client.generate(PROMPT, SAMPLING, "first")
    await anext(running)
    current_meter.set(second)
    waiting = asyncio.create_task(anext(client.generate(PROMPT, SAMPLING, "second")))
    await asyncio.sleep(0.01)
    second.end_early(Preempted("another tenant waits"))
    with pytest.raises(GracefulHTTPError, match="another tenant waits"):
        await waiting
    await running.aclose()


async def test_an_answer_that_has_ended_by_itself_stays_whole(
    client: Any, metering: Metering, current: Meter
) -> None:
    current_meter.set(current)
    answer = client.generate(PROMPT, SAMPLING, "id")
    assert await anext(answer) == ANSWER
    current.end_early(Preempted("another tenant waits"))
    assert [output async for output in answer] == []
