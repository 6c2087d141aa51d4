"""Counts every request's tokens at the one place that all of vLLM's handlers call, and has each
prompt wait there for its tenant's turn."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from server.metering import METER, Meter

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM


def meter(client: AsyncLLM) -> None:
    """Have `client.generate` ask and tell the `Meter` of the request that calls it."""
    generate = client.generate

    def metered(prompt: Any, sampling_params: SamplingParams, *args: Any, **options: Any) -> Any:
        def begin() -> AsyncGenerator[RequestOutput, None]:
            outputs: AsyncGenerator[RequestOutput, None] = generate(
                prompt, sampling_params, *args, **options
            )
            return outputs

        current = METER.get()
        return begin() if current is None else _counted(begin, prompt, sampling_params, current)

    client.generate = metered


async def _counted(
    begin: Callable[[], AsyncGenerator[RequestOutput, None]],
    prompt: Any,
    sampling: SamplingParams,
    into: Meter,
) -> AsyncGenerator[RequestOutput, None]:
    from vllm.sampling_params import RequestOutputKind

    token_ids = prompt.get("prompt_token_ids") if isinstance(prompt, dict) else None
    each_is_new = sampling.output_kind == RequestOutputKind.DELTA
    seen: dict[int, int] = {}
    async with into.turn(len(token_ids or ())) as answer, aclosing(begin()) as outputs:
        async for output in outputs:
            for choice in output.outputs:
                before = 0 if each_is_new else seen.get(choice.index, 0)
                seen[choice.index] = len(choice.token_ids)
                answer.add(len(choice.token_ids) - before, choice.index, _since_first(output))
            yield output


def _since_first(output: RequestOutput) -> float | None:
    """Seconds from the first token to the last so far; None where vLLM keeps no statistics."""
    stats = output.metrics
    return stats.last_token_ts - stats.first_token_ts if stats else None
