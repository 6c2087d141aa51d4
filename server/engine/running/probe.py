"""Sends a probe to the engine: returns the tokens and log-probabilities for a fixed text."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

from server.engine.interface import ProbeAnswer
from server.engine.running.metering import AHEAD

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

ASK_SECONDS = 120.0
"""Time limit for one answer, including the wait in the engine."""


async def answer(
    client: AsyncLLM, text: str, max_tokens: int, adapter: LoRARequest | None
) -> ProbeAnswer:
    """Answer a user's message greedily.

    Raises:
        TimeoutError: there was no answer within `ASK_SECONDS`. vLLM's errors are passed on.
    """
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    # With prompt_logprobs vLLM doesn't read the prefix cache, so every token is computed.
    sampling = SamplingParams(
        max_tokens=max_tokens, temperature=0.0, logprobs=0, prompt_logprobs=0, detokenize=False
    )
    prompt = TokensPrompt(prompt_token_ids=_tokens(client.get_tokenizer(), text))
    request_id = f"probe-{uuid.uuid4()}"
    async with asyncio.timeout(ASK_SECONDS):
        async for output in client.generate(
            prompt, sampling, request_id, lora_request=adapter, priority=AHEAD
        ):
            last = output
    return _read(last)


def _tokens(tokenizer: Any, text: str) -> list[int]:
    """Tokenize a text, as a chat's first message if the base has a chat template."""
    if not getattr(tokenizer, "chat_template", None):
        return list(tokenizer.encode(text))
    message = {"role": "user", "content": text}
    chat = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    return list(tokenizer.encode(chat, add_special_tokens=False))


def _read(output: Any) -> ProbeAnswer:
    completion = output.outputs[0]
    entries = zip(output.prompt_token_ids, output.prompt_logprobs, strict=True)
    prompt = [entry[token].logprob for token, entry in list(entries)[1:]]
    entries = zip(completion.token_ids, completion.logprobs, strict=True)
    return ProbeAnswer(
        tokens=tuple(completion.token_ids),
        logprobs=(*prompt, *(entry[token].logprob for token, entry in entries)),
        ended=completion.finish_reason == "stop",
    )
