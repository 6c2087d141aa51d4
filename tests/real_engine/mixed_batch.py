"""vLLM in a process of its own that answers prompts, each with its own adapter, in batches.

Nothing but vLLM and our plugin for it is in play: no gate.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from server.engine.environment import CPU_LORA_KERNELS

Batch = list[tuple[list[int], Path | None]]
"""Prompts, each with the adapter that answers it or none."""
Answer = tuple[list[int], list[float]]
"""Tokens and their log-probabilities."""
NUM_TOKENS = 16


class BatchEngine:
    """An engine that answers batches until it is stopped."""

    def __init__(self, base: Path, operators: str = "grouped", **engine: Any) -> None:
        """Start the process.

        `operators` may also be "interpreted": those for GPUs, in Triton's interpreter. `engine`:
        the arguments of vLLM's `LLM`.
        """
        context = multiprocessing.get_context("spawn")
        self._channel, theirs = context.Pipe()
        engine = {"model": str(base), "max_model_len": 512, "dtype": "bfloat16", **engine}
        self._process = context.Process(target=_serve, args=(theirs, operators, engine))
        self._process.start()
        theirs.close()

    def answer(self, batches: list[Batch], num_tokens: int = NUM_TOKENS) -> list[list[Answer]]:
        """Answer one batch after the other; raises `EOFError` if the process has ended."""
        self._channel.send((batches, num_tokens))
        answers: list[list[Answer]] = self._channel.recv()
        return answers

    def stop(self) -> None:
        """End the process."""
        self._channel.close()
        self._process.join()


def answer_batches(
    base: Path,
    batches: list[Batch],
    operators: str = "grouped",
    num_tokens: int = NUM_TOKENS,
    **engine: Any,
) -> list[list[Answer]]:
    """Start an engine, have it answer one batch after the other, and stop it."""
    started = BatchEngine(base, operators, **engine)
    try:
        return started.answer(batches, num_tokens)
    finally:
        started.stop()


def _serve(channel: Connection, operators: str, engine: dict[str, Any]) -> None:
    interpreted = operators == "interpreted"
    os.environ |= {
        CPU_LORA_KERNELS: "stock" if interpreted else operators,
        "OMP_NUM_THREADS": "1",  # more cores are no help to a base this small
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # In this process: a batch is complete before its first step, so that a batch that is sent
        # again is computed in the same steps.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    if interpreted:
        sys.path.insert(0, str(Path(__file__).parents[2] / ".triton"))
        os.environ["TRITON_INTERPRET"] = "1"
    from vllm import LLM

    if interpreted:
        _interpret_gpu_operators()
    llm = LLM(skip_tokenizer_init=True, enable_lora=True, enable_prefix_caching=False, **engine)
    numbers: dict[Path, int] = {}
    while True:
        try:
            batches, num_tokens = channel.recv()
        except EOFError:
            return
        channel.send([_answer(llm, batch, num_tokens, numbers) for batch in batches])


def _answer(llm: Any, batch: Batch, num_tokens: int, numbers: dict[Path, int]) -> list[Answer]:
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.lora.request import LoRARequest

    def adapter(path: Path | None) -> LoRARequest | None:
        if path is None:
            return None
        return LoRARequest(str(path), numbers.setdefault(path, len(numbers) + 1), str(path))

    sampling = SamplingParams(
        temperature=0, max_tokens=num_tokens, logprobs=0, ignore_eos=True, detokenize=False
    )
    outputs = llm.generate(
        [TokensPrompt(prompt_token_ids=prompt) for prompt, _ in batch],
        sampling,
        lora_request=[adapter(path) for _, path in batch],
        use_tqdm=False,
    )
    return [_tokens_and_logprobs(output) for output in outputs]


def _interpret_gpu_operators() -> None:
    from vllm.platforms import current_platform

    wrapper = "server.engine.worker.lora_gpu.punica.FusedPunicaWrapper"
    type(current_platform).get_punica_wrapper = classmethod(lambda _platform: wrapper)


def _tokens_and_logprobs(output: Any) -> Answer:
    """The answer's tokens and their log-probabilities."""
    answer = output.outputs[0]
    tokens = list(answer.token_ids)
    logprobs = [entry[token].logprob for token, entry in zip(tokens, answer.logprobs, strict=True)]
    return tokens, logprobs
