"""Counts every request's tokens at the one place that all of vLLM's handlers call, and has each
prompt wait there for its tenant's turn."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from server.metering import METER, Answer, Meter

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM


_Whole = tuple[Answer, dict[int, int]]
"""An answer that isn't sent token by token, and how many tokens of each choice are counted."""


def meter(client: AsyncLLM) -> None:
    """Have `client.generate` ask and tell the `Meter` of the request that calls it."""
    generate, abort = client.generate, client.abort
    whole: dict[str, _Whole] = {}

    def metered(
        prompt: Any, sampling_params: SamplingParams, request_id: str, *args: Any, **options: Any
    ) -> Any:
        def begin() -> AsyncGenerator[RequestOutput, None]:
            outputs: AsyncGenerator[RequestOutput, None] = generate(
                prompt, sampling_params, request_id, *args, **options
            )
            return outputs

        current = METER.get()
        if current is None:
            return begin()
        return _counted(begin, prompt, sampling_params, request_id, current, whole)

    async def metered_abort(*args: Any, **options: Any) -> None:
        """vLLM's own calls come here, too, with what is being cut off still there to be counted."""
        for state in client.output_processor.request_states.values():
            if state.external_req_id in whole:
                answer, seen = whole[state.external_req_id]
                num_tokens = state.detokenizer.num_output_tokens()
                answer.charge(num_tokens - seen.get(state.request_index, 0))
                seen[state.request_index] = num_tokens
        await abort(*args, **options)

    client.generate, client.abort = metered, metered_abort


async def _counted(
    begin: Callable[[], AsyncGenerator[RequestOutput, None]],
    prompt: Any,
    sampling: SamplingParams,
    request_id: str,
    into: Meter,
    whole: dict[str, _Whole],
) -> AsyncGenerator[RequestOutput, None]:
    from vllm.sampling_params import RequestOutputKind

    token_ids = prompt.get("prompt_token_ids") if isinstance(prompt, dict) else None
    each_is_new = sampling.output_kind == RequestOutputKind.DELTA
    seen: dict[int, int] = {}
    async with into.turn(len(token_ids or ())) as answer:
        if not each_is_new:
            whole[request_id] = answer, seen
        try:
            async with aclosing(begin()) as outputs:
                async for output in outputs:
                    for choice in output.outputs:
                        before = 0 if each_is_new else seen.get(choice.index, 0)
                        seen[choice.index] = len(choice.token_ids)
                        new = len(choice.token_ids) - before
                        answer.add(new, choice.index, _since_first(output))
                    yield output
        finally:
            whole.pop(request_id, None)


def _since_first(output: RequestOutput) -> float | None:
    """Seconds from the first token to the last so far; None where vLLM keeps no statistics."""
    stats = output.metrics
    return stats.last_token_ts - stats.first_token_ts if stats else None
