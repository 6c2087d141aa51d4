"""At the places that every request passes, whichever of vLLM's handlers sent it: each prompt waits
for its tenant's turn where it enters the engine, and its tokens are counted as they leave it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from server.tenancy.meter import Meter, TokenCounter, current_meter

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.engine.async_llm import AsyncLLM


def meter(client: AsyncLLM) -> None:
    """Have `client` ask and tell the `Meter` of the request that calls its `generate`."""
    generate, processor = client.generate, client.output_processor
    process_outputs = processor.process_outputs
    answers: dict[str, TokenCounter] = {}

    def metered(
        prompt: Any, sampling_params: SamplingParams, request_id: str, *args: Any, **options: Any
    ) -> Any:
        def begin() -> AsyncGenerator[RequestOutput, None]:
            outputs: AsyncGenerator[RequestOutput, None] = generate(
                prompt, sampling_params, request_id, *args, **options
            )
            return outputs

        if (current := current_meter.get()) is None:
            return begin()
        return _in_turn(begin, prompt, request_id, current, answers)

    def counted(outputs: list[EngineCoreOutput], *args: Any, **options: Any) -> Any:
        """Of a step of the engine; handlers see the tokens of a whole answer at its end only."""
        for output in outputs:
            state = processor.request_states.get(output.request_id)
            if state and (answer := answers.get(state.external_req_id)):
                answer.add(len(output.new_token_ids), state.request_index)
        return process_outputs(outputs, *args, **options)

    client.generate, processor.process_outputs = metered, counted


async def _in_turn(
    begin: Callable[[], AsyncGenerator[RequestOutput, None]],
    prompt: Any,
    request_id: str,
    into: Meter,
    answers: dict[str, TokenCounter],
) -> AsyncGenerator[RequestOutput, None]:
    token_ids = prompt.get("prompt_token_ids") if isinstance(prompt, dict) else None
    async with into.turn(len(token_ids or ())) as answer:
        answers[request_id] = answer
        try:
            async with aclosing(begin()) as outputs:
                async for output in outputs:
                    yield output
        finally:
            answers.pop(request_id, None)
