"""The base's compiled kernels in the real engine, beside vLLM's layers."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from server.bundled_base import ensure_bundled_base
from server.engine.environment import CPU_BASE_KERNELS, prepare_environment
from server.engine.worker.decoder_cpu.kernel import MOST_PROMPT_ROWS

PROMPTS = [list(range(100, 100 + length)) for length in (1, 20, MOST_PROMPT_ROWS + 10)]
NUM_TOKENS = 12
MOST_DIFFERENCE, MEAN_DIFFERENCE = 0.4, 0.06
"""Of log-probabilities. With AMX vLLM's attention rounds its weights to bfloat16, and the decoder's
doesn't: single unlikely tokens differ by 0.3."""


def answer(base: str, demo: str, channel: Connection) -> None:
    """Send how the prompts go on, token by token, and what the same tokens say as a prompt."""
    os.environ[CPU_BASE_KERNELS] = "compiled"
    prepare_environment(base, "error", "grouped", Path("var"))
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.lora.request import LoRARequest

    llm = LLM(
        base,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        max_model_len=256,
        kv_cache_memory_bytes=1 << 28,
        enable_lora=True,
        max_lora_rank=16,
    )
    adapters = [None, LoRARequest("demo", 1, demo), None]

    def ask(
        prompts: list[list[int]], tokens: int, adapters: list[Any] = adapters, **parameters: int
    ) -> list[Any]:
        sampling = SamplingParams(
            max_tokens=tokens, ignore_eos=True, detokenize=False, temperature=0, **parameters
        )
        given = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        return list(llm.generate(given, sampling, lora_request=adapters, use_tqdm=False))

    streams = [output.outputs[0] for output in ask(PROMPTS, NUM_TOKENS, logprobs=0)]
    whole = [p + list(s.token_ids) for p, s in zip(PROMPTS, streams, strict=True)]
    said = [[logprob(each) for each in stream.logprobs] for stream in streams]
    again = [prompt_logprobs(output) for output in ask(whole, 1, prompt_logprobs=0)]
    alone = [
        prompt_logprobs(ask([prompt], 1, [adapter], prompt_logprobs=0)[0])
        for prompt, adapter in zip(whole[:2], adapters, strict=False)
    ]
    used = llm.apply_model(lambda model: model.model.loraplex_decoder is not None)
    channel.send((said, again, alone, used))


def prompt_logprobs(output: Any) -> list[float]:
    """Return those of a prompt's last tokens."""
    return [logprob(each) for each in output.prompt_logprobs[-NUM_TOKENS:]]


def logprob(entry: dict[int, Any]) -> float:
    """The log-probability of the token that stands there."""
    return float(next(iter(entry.values())).logprob)


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_tokens_are_as_likely_in_a_stream_as_in_a_prompt() -> None:
    """Streams and a short prompt take the compiled decoder, long prompts vLLM's layers."""
    demo = Path(__file__).parents[2] / "training" / "demo" / "smart-home"
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=answer, args=(str(ensure_bundled_base()), str(demo), theirs))
    process.start()
    theirs.close()
    said, again, alone, used = ours.recv()
    process.join()
    assert used == [True]
    for stream, prompt in zip(said, again, strict=True):
        assert stream == pytest.approx(prompt, abs=MOST_DIFFERENCE)
    for short, prompt in zip(alone, again, strict=False):
        assert short == pytest.approx(prompt, abs=MOST_DIFFERENCE)
    together = [
        abs(a - b)
        for stream, prompt in zip(said, again, strict=True)
        for a, b in zip(stream, prompt, strict=True)
    ]
    assert sum(together) / len(together) < MEAN_DIFFERENCE
