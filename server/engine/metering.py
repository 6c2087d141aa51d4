"""Counts the tokens of every request at the one place that all of vLLM's handlers call."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from server.metering import METER, Meter

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM


def meter(client: AsyncLLM) -> None:
    """Have `client.generate` count into the `Meter` of the request that calls it."""
    generate = client.generate

    def metered(prompt: Any, sampling_params: SamplingParams, *args: Any, **options: Any) -> Any:
        outputs = generate(prompt, sampling_params, *args, **options)
        current = METER.get()
        return outputs if current is None else _counted(outputs, prompt, sampling_params, current)

    client.generate = metered


async def _counted(
    outputs: AsyncGenerator[RequestOutput, None], prompt: Any, sampling: SamplingParams, into: Meter
) -> AsyncGenerator[RequestOutput, None]:
    from vllm.sampling_params import RequestOutputKind

    if isinstance(prompt, dict):
        into.input_tokens += len(prompt.get("prompt_token_ids") or ())
    each_is_new = sampling.output_kind == RequestOutputKind.DELTA
    seen: dict[int, int] = {}
    async with aclosing(outputs):
        async for output in outputs:
            for choice in output.outputs:
                before = 0 if each_is_new else seen.get(choice.index, 0)
                seen[choice.index] = len(choice.token_ids)
                into.output_tokens += len(choice.token_ids) - before
            yield output
