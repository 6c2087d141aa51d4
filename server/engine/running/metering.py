"""Patches the places in vLLM that every request passes, whichever handler sent it.

Where a prompt enters the engine, its sampling options are checked, and it waits for its tenant's
turn. Where tokens leave the engine, they are counted, and the turn ends with the last token, even
if the client reads slowly. Every message of the engine's process is noted as a sign of life.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

from server.engine.errors import for_handlers, map_exception
from server.engine.grammar.trial import GrammarTrials, grammar_of
from server.engine.running.parts import ABORTED, Part, joined, parts_of
from server.engine.running.progress import Progress
from server.engine.worker.speculation import SALT
from server.errors import APIError, Unavailable
from server.tenancy.meter import Meter, TokenCounter, current_meter

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.engine.async_llm import AsyncLLM

ABORT_SECONDS = 0.1
"""The pause between two tries to abort a request."""
AHEAD = -1
"""Priority of the server's own requests: the lowest number is scheduled first.

Clients' requests are numbered from 0 in the order in which their turns came, so the engine serves
them first come, first served."""


class Metering:
    """Patches one `AsyncLLM` so that it reports to the running requests' meters."""

    def __init__(
        self,
        client: AsyncLLM,
        progress: Progress,
        trials: GrammarTrials,
        verify: Callable[[SamplingParams], None],
    ) -> None:
        """`verify` raises if the engine would refuse these parameters."""
        self._progress, self._trials, self._verify = progress, trials, verify
        self._generate, self._abort = client.generate, client.abort
        self._processor = client.output_processor
        self._speculates = client.vllm_config.speculative_config is not None
        self._numbers = itertools.count()
        self._answers: dict[str, TokenCounter] = {}
        """Answers that are being computed, by the id that the handler gave the request."""
        self._waiting: dict[asyncio.Future[None], LoRARequest] = {}
        """Requests with an adapter that wait for their turn."""
        self._aborts: set[asyncio.Task[None]] = set()
        self._patch(client)

    def end_waiting(self, version_id: int) -> None:
        """End the requests on a version that still wait for their turn."""
        for admitted, lora in self._waiting.items():
            if lora.lora_int_id == version_id and not admitted.done():
                error = Unavailable(f"{lora.lora_name} was retired; ask for another version")
                admitted.set_exception(error)

    def end_all(self) -> None:
        """End all turns because the engine is gone, even if clients still read their answers."""
        for answer in list(self._answers.values()):
            answer.end()

    def _patch(self, client: AsyncLLM) -> None:
        process_outputs = self._processor.process_outputs
        abort_requests = self._processor.abort_requests
        get_output = client.engine_core.get_output_async

        async def noticed() -> Any:
            outputs = await get_output()
            self._progress.sign_of_life()
            stats = outputs.scheduler_stats
            if outputs.outputs or (stats and stats.num_running_reqs):
                self._progress.step(time.monotonic())
            return outputs

        def counted(outputs: list[EngineCoreOutput], *args: Any, **options: Any) -> Any:
            # After every step of the engine: a handler that doesn't stream would see the tokens
            # only when the answer is complete.
            states, running = self._processor.request_states, []
            for output in outputs:
                if (state := states.get(output.request_id)) is None:
                    continue
                if answer := self._answers.get(state.external_req_id):
                    answer.add(len(output.new_token_ids), state.request_index)
                    running.append((output.request_id, state.external_req_id))
            before = len(states)
            result = process_outputs(outputs, *args, **options)
            if len(states) != before:  # in most steps no request ends
                self._end_answers(
                    {name for request_id, name in running if request_id not in states}
                )
            return result

        def aborted(request_ids: Any, *args: Any, **options: Any) -> Any:
            before = set(self._processor.external_req_ids)
            result = abort_requests(request_ids, *args, **options)
            self._end_answers(before)
            return result

        client.generate = self._metered
        client.engine_core.get_output_async = noticed
        self._processor.process_outputs, self._processor.abort_requests = counted, aborted

    def _end_answers(self, names: set[str]) -> None:
        """End the turns of those requests whose choices have all left the engine."""
        for name in names:
            if name not in self._processor.external_req_ids and (answer := self._answers.get(name)):
                answer.end()

    def _metered(
        self,
        prompt: Any,
        sampling_params: SamplingParams,
        request_id: str,
        *args: Any,
        **options: Any,
    ) -> Any:
        if (current := current_meter.get()) is None:
            return self._generate(prompt, sampling_params, request_id, *args, **options)
        token_ids = (prompt.get("prompt_token_ids") if isinstance(prompt, dict) else None) or ()
        if (alternatives := sampling_params.prompt_logprobs) is not None:
            current.prompt_log_probabilities.take(len(token_ids), alternatives)
        if self._speculates:
            sampling_params.extra_args = {**(sampling_params.extra_args or {}), **_salt_of(prompt)}
        parts = parts_of(sampling_params, current.prompt_queue.max_running)
        for _ in parts:
            current.expect_answer()
        grammar = grammar_of(getattr(sampling_params, "structured_outputs", None))
        current.check_before_stream(lambda: self._check(sampling_params, grammar, current.tenant))

        def answer(part: Part) -> AsyncGenerator[RequestOutput, None]:
            name = f"{request_id}-{part.first}" if part.first else request_id
            call = partial(self._generate, prompt, part.parameters, name, *args, **options)
            # The tokens of the prompt are computed, and paid, once.
            input_tokens = 0 if part.first else len(token_ids)
            lora = options.get("lora_request")
            return self._answer(call, name, input_tokens, part.choices, lora, grammar, current)

        answers = [answer(part) for part in parts]
        return joined(parts, answers) if len(parts) > 1 else answers[0]

    async def _check(
        self, sampling_params: SamplingParams, grammar: tuple[str, str] | None, tenant: str
    ) -> None:
        """Check what the engine would otherwise refuse only after the stream's first byte.

        Raises:
            APIError: it is refused, or its grammar takes too long to compile.
        """
        try:
            if grammar:
                await self._trials.admit(tenant, *grammar)
                await asyncio.to_thread(self._verify, sampling_params)  # parses the grammar
            else:
                self._verify(sampling_params)
        except Exception as error:
            raise map_exception(error) from error

    async def _answer(
        self,
        generate: Callable[..., AsyncGenerator[RequestOutput, None]],
        request_id: str,
        input_tokens: int,
        choices: int,
        lora: LoRARequest | None,
        grammar: tuple[str, str] | None,
        into: Meter,
    ) -> AsyncGenerator[RequestOutput, None]:
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def end(error: APIError) -> None:
            if not admitted.done():
                admitted.set_exception(error)
            elif answer := self._answers.get(request_id):
                self._start_abort(request_id, answer)

        try:
            if grammar:
                await self._trials.admit(into.tenant, *grammar)
            if lora is not None:
                self._waiting[admitted] = lora
            with into.ending_early(end):
                async with into.admission(input_tokens, choices, admitted) as answer:
                    self._waiting.pop(admitted, None)
                    self._answers[request_id] = answer
                    reasons: set[str] = set()
                    async with aclosing(generate(priority=next(self._numbers))) as outputs:
                        async for output in outputs:
                            for choice in output.outputs:
                                if choice.finish_reason:
                                    reasons.add(choice.finish_reason)
                                    into.record.finish_reasons.add(choice.finish_reason)
                            yield output
                    if into.ended_by and ABORTED in reasons:
                        raise into.ended_by
        except APIError as error:
            into.failure = error
            raise for_handlers(error) from error
        except Exception as error:
            into.failure = map_exception(error)
            raise
        finally:
            self._waiting.pop(admitted, None)
            self._answers.pop(request_id, None)

    def _start_abort(self, request_id: str, answer: TokenCounter) -> None:
        """Have the engine stop computing an answer. What it has said so far is handed over."""

        async def abort() -> None:
            while not answer.ended:  # it may be on its way into the engine
                await self._abort(request_id)
                await asyncio.sleep(ABORT_SECONDS)

        task = asyncio.create_task(abort())
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)


def _salt_of(prompt: Any) -> dict[str, str]:
    """Return what tells the engine whose answers it may guess from: those with the same salt."""
    salt = prompt.get("cache_salt") if isinstance(prompt, dict) else None
    return {SALT: salt} if salt else {}
