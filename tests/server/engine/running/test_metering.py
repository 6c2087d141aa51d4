"""Tokens are counted, and turns end, where tokens leave the engine, whatever the handlers do."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.exceptions import GracefulHTTPError, VLLMValidationError

from server.engine.grammar.trial import GrammarTrials
from server.engine.running.metering import Metering
from server.engine.running.progress import Progress
from server.engine.worker.speculation import SALT
from server.errors import InvalidRequest, SchemaTooComplex, Unavailable
from server.tenancy.meter import Meter, current_meter
from server.tenancy.prompt_queue import PromptQueue
from tests.server.engine.running.llm_client import ANSWER, LORA, PROMPT, SAMPLING, Client, allow


async def test_tokens_are_counted_as_the_engine_gives_them(
    client: Any, metering: Metering, current: Meter
) -> None:
    current_meter.set(current)
    for number in (1, 2):
        assert [output async for output in client.generate(PROMPT, SAMPLING, "id")] == [ANSWER]
        assert (current.input_tokens, current.output_tokens) == (3 * number, 12 * number)
    assert current.record.finish_reasons == {"stop"}
    assert client.num_processed == 12
    assert client.priorities == [0, 1], "the engine serves in the order of the turns"


async def test_who_goes_away_is_charged_so_far_and_ends_the_request(
    client: Any, metering: Metering, current: Meter
) -> None:
    current_meter.set(current)
    client.may_end.clear()

    async def answer() -> None:
        async for _ in client.generate(PROMPT, SAMPLING, "id"):
            pass

    running = asyncio.create_task(answer())
    await asyncio.sleep(0.01)
    assert (current.output_tokens, client.num_closed) == (12, 0)
    running.cancel()
    await current.ended()
    assert (current.tokens, client.num_closed) == (15, 1)


async def test_log_probabilities_of_all_prompts_are_bounded(
    client: Any, metering: Metering, current: Meter
) -> None:
    current_meter.set(current)
    prompt = {"prompt_token_ids": [1] * 1500}
    sampling = SimpleNamespace(n=1, prompt_logprobs=20)
    client.generate(prompt, sampling, "first")
    with pytest.raises(InvalidRequest, match="shorter prompts"):
        client.generate(prompt, sampling, "second")


async def test_requests_side_by_side_are_counted_apart(
    client: Any, metering: Metering, current: Meter
) -> None:
    async def answers(meter: Meter, request_id: str, number: int) -> None:
        current_meter.set(meter)
        for _ in range(number):
            async for _ in client.generate(PROMPT, SAMPLING, request_id):
                await asyncio.sleep(0)

    other = Meter(PromptQueue(4, 100), "other")
    await asyncio.gather(answers(current, "a", 1), answers(other, "b", 3))
    assert (current.output_tokens, other.output_tokens) == (12, 36)


async def test_the_servers_own_requests_are_not_counted(client: Any, metering: Metering) -> None:
    current_meter.set(None)
    assert [output async for output in client.generate(PROMPT, SAMPLING, "id", priority=-1)]


async def test_a_turn_ends_with_the_engines_last_token_though_nobody_reads(
    client: Any, metering: Metering
) -> None:
    queue = PromptQueue(1, 100)
    slow, other = Meter(queue, "acme"), Meter(queue, "acme")
    ended: list[str] = []
    slow.on_work_over(lambda: ended.append("slow"))
    current_meter.set(slow)
    answer = client.generate(PROMPT, SAMPLING, "slow")
    assert await anext(answer) == ANSWER  # and the client reads nothing more
    slow.hand_over(complete=False)
    assert ended == ["slow"]
    current_meter.set(other)
    async with asyncio.timeout(10):
        assert [each async for each in client.generate(PROMPT, SAMPLING, "other")]
    await answer.aclose()


async def test_work_that_was_aborted_is_over_though_nobody_reads(
    client: Any, metering: Metering, current: Meter
) -> None:
    client.may_end.clear()
    current_meter.set(current)
    ended: list[str] = []
    current.on_work_over(lambda: ended.append("over"))
    answer = client.generate(PROMPT, SAMPLING, "id", lora_request=LORA)
    await anext(answer)
    current.hand_over(complete=False)
    assert not ended
    states = client.output_processor.request_states
    client.output_processor.abort_requests(list(states), internal=True)
    assert ended == ["over"]
    await answer.aclose()


async def test_the_engine_is_asked_no_more_once_its_work_is_over(
    client: Any, metering: Metering, current: Meter
) -> None:
    current_meter.set(current)
    current.hand_over(complete=True)
    with pytest.raises(Unavailable):
        client.generate(PROMPT, SAMPLING, "id")


async def test_work_is_not_over_before_the_handler_has_asked_for_its_first_answer(
    client: Any, metering: Metering, current: Meter
) -> None:
    current_meter.set(current)
    ended: list[str] = []
    current.on_work_over(lambda: ended.append("over"))
    current.hand_over(complete=False)
    assert not ended
    assert [output async for output in client.generate(PROMPT, SAMPLING, "id")]
    assert ended == ["over"]


async def test_a_stream_is_checked_before_it_begins(client: Any, current: Meter) -> None:
    trials, refused = GrammarTrials(str), [SchemaTooComplex("the grammar takes too long")]

    async def admit(tenant: str, kind: str, spec: str) -> None:
        assert (tenant, kind, spec) == ("acme", "regex", "a*")
        raise refused[0]

    def verify(parameters: Any) -> None:
        if parameters.n > 1:
            raise VLLMValidationError("n is wrong", parameter="n")

    trials.admit = admit  # type: ignore[method-assign]
    Metering(client, Progress(), trials, verify)
    current_meter.set(current)
    client.generate(PROMPT, SAMPLING, "id")
    await current.checked()
    grammar = SimpleNamespace(
        n=1, prompt_logprobs=None, structured_outputs=SimpleNamespace(json=None, regex="a*")
    )
    client.generate(PROMPT, grammar, "id")
    with pytest.raises(SchemaTooComplex):
        await current.checked()
    other = Meter(PromptQueue(4, 100), "acme")
    current_meter.set(other)
    client.generate(PROMPT, SimpleNamespace(n=2, prompt_logprobs=None), "id")
    with pytest.raises(InvalidRequest, match="n is wrong"):
        await other.checked()
    assert not client.priorities, "nothing has begun"


async def test_a_retired_version_ends_what_waits_for_its_turn(
    client: Any, metering: Metering
) -> None:
    queue = PromptQueue(1, 100)
    client.may_end.clear()

    async def ask(request_id: str, lora: Any) -> None:
        current_meter.set(Meter(queue, "acme"))
        async for _ in client.generate(PROMPT, SAMPLING, request_id, lora_request=lora):
            pass

    running = asyncio.create_task(ask("running", None))
    await asyncio.sleep(0.01)
    waiting = asyncio.create_task(ask("waiting", LORA))
    await asyncio.sleep(0.01)
    metering.end_waiting(99)
    await asyncio.sleep(0)
    assert not waiting.done()
    metering.end_waiting(LORA.lora_int_id)
    with pytest.raises(GracefulHTTPError, match="retired"):
        await waiting
    client.may_end.set()
    await running
    await ask("next", LORA)


async def test_an_engine_that_is_gone_holds_no_turns(
    client: Any, metering: Metering, current: Meter
) -> None:
    client.may_end.clear()
    current_meter.set(current)
    answer = client.generate(PROMPT, SAMPLING, "id")
    await anext(answer)
    ended: list[str] = []
    current.on_work_over(lambda: ended.append("over"))
    current.hand_over(complete=False)
    metering.end_all()
    assert ended == ["over"]
    await answer.aclose()


async def test_what_the_engine_sends_is_a_sign_of_life() -> None:
    client: Any = Client()
    progress = Progress()
    Metering(client, progress, GrammarTrials(str), allow)
    progress.tick(5, 10)
    assert progress.silent_seconds == 5
    await client.engine_core.get_output_async()
    assert progress.silent_seconds == 0


@pytest.mark.parametrize("salt", ["acme's", None])
async def test_the_engine_hears_whose_answers_it_may_guess_from(
    client: Any, current: Meter, salt: str | None
) -> None:
    client.vllm_config.speculative_config = SimpleNamespace()
    Metering(client, Progress(), GrammarTrials(str), allow)
    current_meter.set(current)
    sampling = SimpleNamespace(n=1, prompt_logprobs=None, extra_args={"theirs": 1})
    prompt = {**PROMPT, **({"cache_salt": salt} if salt else {})}
    assert [output async for output in client.generate(prompt, sampling, "id")] == [ANSWER]
    assert sampling.extra_args == {"theirs": 1, **({SALT: salt} if salt else {})}
