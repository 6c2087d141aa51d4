"""Tokens are counted, and turns end, where tokens leave the engine, whatever the handlers do."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.exceptions import GracefulHTTPError, VLLMValidationError

from server.engine.grammar.trial import GrammarTrials
from server.engine.running.metering import Metering
from server.engine.running.progress import Progress
from server.errors import InvalidRequest, Preempted, SchemaTooComplex, Unavailable
from server.tenancy.meter import Meter, current_meter
from server.tenancy.prompt_queue import PromptQueue

PROMPT = {"prompt_token_ids": [1, 2, 3]}
NUM_CHOICES = NUM_STEPS = 2
ANSWER = SimpleNamespace(outputs=[SimpleNamespace(finish_reason="stop")])
SAMPLING = SimpleNamespace(n=1)
LORA = SimpleNamespace(lora_int_id=7, lora_name="acme/home@1")


class Client:
    """Gives two choices three tokens in each of two steps; `generate` shows them at the end."""

    def __init__(self) -> None:
        self.output_processor = SimpleNamespace(
            request_states={},
            external_req_ids=defaultdict(list),
            process_outputs=self._process,
            abort_requests=self._abort,
        )
        self.engine_core = SimpleNamespace(get_output_async=self._output)
        self.ends_with = "stop"
        self.num_closed = self.num_processed = 0
        self.priorities: list[int] = []
        self.may_end = asyncio.Event()
        self.may_end.set()

    def _process(self, outputs: list[Any], timestamp: float) -> int:
        self.num_processed += len(outputs)
        for output in outputs:
            if output.finish_reason and output.request_id in self.output_processor.request_states:
                self._finish(output.request_id)
        return len(outputs)

    def _abort(self, request_ids: list[str], internal: bool) -> list[str]:
        for request_id in request_ids:
            self._finish(request_id)
        return request_ids

    def _finish(self, request_id: str) -> None:
        state = self.output_processor.request_states.pop(request_id)
        names = self.output_processor.external_req_ids
        names[state.external_req_id].remove(request_id)
        if not names[state.external_req_id]:
            del names[state.external_req_id]

    async def abort(self, request_id: str) -> None:
        ids = self.output_processor.external_req_ids.get(request_id, [])
        self.output_processor.abort_requests(list(ids), internal=True)
        if ids:
            self.ends_with = "abort"
            self.may_end.set()

    async def _output(self) -> Any:
        return SimpleNamespace(outputs=[], scheduler_stats=SimpleNamespace(num_running_reqs=1))

    async def generate(
        self, _prompt: Any, _sampling: Any, request_id: str, **options: Any
    ) -> AsyncIterator[Any]:
        self.priorities.append(options["priority"])
        states = self.output_processor.request_states
        ids = [f"{choice}_{request_id}-{len(states)}" for choice in range(NUM_CHOICES)]
        for choice, each in enumerate(ids):
            states[each] = SimpleNamespace(external_req_id=request_id, request_index=choice)
            self.output_processor.external_req_ids[request_id].append(each)
        try:
            for step in range(NUM_STEPS):
                finish = "stop" if step == NUM_STEPS - 1 and self.may_end.is_set() else None
                outputs = [
                    SimpleNamespace(request_id=i, new_token_ids=[7, 7, 7], finish_reason=finish)
                    for i in (*ids, "gone")
                ]
                assert self.output_processor.process_outputs(outputs, timestamp=1.0) == 3
            yield ANSWER
            await self.may_end.wait()
            if self.ends_with == "abort":
                yield SimpleNamespace(outputs=[SimpleNamespace(finish_reason="abort")])
        finally:
            self.num_closed += 1


@pytest.fixture
def client() -> Any:
    return Client()


@pytest.fixture
def metering(client: Any) -> Metering:
    return Metering(client, Progress(), GrammarTrials(str), allow)


def allow(_parameters: Any) -> None:
    """Find nothing wrong with a request's parameters."""


@pytest.fixture
def current() -> Meter:
    return Meter(PromptQueue(4, 100), "acme")


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
    grammar = SimpleNamespace(n=1, structured_outputs=SimpleNamespace(json=None, regex="a*"))
    client.generate(PROMPT, grammar, "id")
    with pytest.raises(SchemaTooComplex):
        await current.checked()
    other = Meter(PromptQueue(4, 100), "acme")
    current_meter.set(other)
    client.generate(PROMPT, SimpleNamespace(n=2), "id")
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
