"""Choices that do not fit the engine's room begin in parts, and are one answer to the handler."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from server.engine.running.metering import Metering
from server.engine.running.parts import joined, parts_of
from server.tenancy.meter import Meter, current_meter
from tests.server.engine.running.llm_client import PROMPT, Client


def output_of(numbers: list[int], reason: str | None = "stop") -> RequestOutput:
    choices = [
        CompletionOutput(index, f"text {index}", [index], None, None, finish_reason=reason)
        for index in numbers
    ]
    return RequestOutput("id", None, [1, 2], None, choices, finished=reason is not None)


async def answer(*outputs: RequestOutput) -> AsyncGenerator[RequestOutput, None]:
    for output in outputs:
        yield output


def test_parts_fit_the_room_and_continue_the_seeds() -> None:
    parts = parts_of(SamplingParams(n=70, seed=5), 32)
    assert [(part.first, part.choices, part.parameters.n) for part in parts] == [
        (0, 32, 32),
        (32, 32, 32),
        (64, 6, 6),
    ]
    assert [part.parameters.seed for part in parts] == [5, 37, 69]
    whole = SamplingParams(n=32)
    assert [part.parameters for part in parts_of(whole, 32)] == [whole]


async def test_an_unstreamed_answer_is_one_output_with_all_choices() -> None:
    parts = parts_of(SamplingParams(n=3, output_kind=RequestOutputKind.FINAL_ONLY), 2)
    answers = [answer(output_of([0]), output_of([1])), answer(output_of([0]))]
    [output] = [each async for each in joined(parts, answers)]
    assert [choice.index for choice in output.outputs] == [0, 1, 2]
    assert output.finished


async def test_a_stream_has_the_numbers_of_the_choices() -> None:
    parts = parts_of(SamplingParams(n=3, output_kind=RequestOutputKind.DELTA), 2)
    answers = [answer(output_of([0, 1], None), output_of([1, 0])), answer(output_of([0]))]
    seen = [each async for each in joined(parts, answers)]
    assert [[choice.index for choice in each.outputs] for each in seen] == [[0, 1], [1, 0], [2]]
    assert [each.finished for each in seen] == [False, False, True]


async def test_after_an_abort_no_part_begins() -> None:
    parts = parts_of(SamplingParams(n=3, output_kind=RequestOutputKind.DELTA), 2)
    began: list[int] = []

    async def second() -> AsyncIterator[RequestOutput]:
        began.append(2)
        yield output_of([0])

    later: Any = second()
    seen = [each async for each in joined(parts, [answer(output_of([0, 1], "abort")), later])]
    assert [choice.index for choice in seen[0].outputs] == [0, 1]
    assert len(seen) == 1
    assert not began


@pytest.mark.parametrize("choices", [4, 9])
async def test_a_request_is_over_with_its_last_part_and_its_prompt_is_counted_once(
    client: Client, metering: Metering, current: Meter, choices: int
) -> None:
    """The room is four sequences. The client gives each part two choices of six tokens."""
    current_meter.set(current)
    ended: list[int] = []
    current.on_work_over(lambda: ended.append(current.output_tokens))
    current.hand_over(complete=False)
    sampling: Any = SamplingParams(n=choices, output_kind=RequestOutputKind.DELTA)
    llm: Any = client
    async for _ in llm.generate(PROMPT, sampling, "id"):
        pass
    num_parts = -(-choices // 4)
    assert ended == [12 * num_parts]
    assert current.input_tokens == 3
    assert client.priorities == list(range(num_parts))
