"""The choices of one prompt in parts, each of which fits the engine's room.

A prompt whose choices are more than the room would wait for ever, or take it all for long. So the
choices begin a part at a time, each part in its tenant's turn. The handler sees one answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams

ABORTED = "abort"
"""vLLM's reason why an aborted choice ended."""


@dataclass(frozen=True)
class Part:
    """Some choices of a prompt, numbered from `first`."""

    parameters: SamplingParams
    first: int
    choices: int


def parts_of(parameters: SamplingParams, most: int) -> list[Part]:
    """Return the parts of at most `most` choices each; one part if all choices fit."""
    choices = max(1, parameters.n or 1)
    if choices <= most:
        return [Part(parameters, 0, choices)]
    parts = []
    for first in range(0, choices, most):
        part = parameters.clone()
        part.n = min(most, choices - first)
        if part.seed is not None:
            part.seed += first  # as vLLM numbers the seeds of choices
        parts.append(Part(part, first, part.n))
    return parts


async def joined(
    parts: Sequence[Part], answers: Sequence[AsyncGenerator[RequestOutput, None]]
) -> AsyncGenerator[RequestOutput, None]:
    """Yield the answers of all parts, one after another, as the answer to the whole prompt.

    Handlers that don't stream take the last output for all choices, so they get one output. If
    choices are aborted, no further part begins.
    """
    from vllm.sampling_params import RequestOutputKind

    is_stream = parts[0].parameters.output_kind is RequestOutputKind.DELTA
    whole: RequestOutput | None = None
    is_aborted = False
    for part, answer in zip(parts, answers, strict=True):
        if is_aborted:
            break
        async with aclosing(answer) as outputs:
            async for output in outputs:
                for choice in output.outputs:
                    choice.index += part.first
                    is_aborted = is_aborted or choice.finish_reason == ABORTED
                if is_stream:
                    output.finished = output.finished and part is parts[-1]
                    yield output
                elif whole is None:
                    whole = output
                else:
                    whole.add(output, aggregate=False)
    if whole is not None:
        yield whole
