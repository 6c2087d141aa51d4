"""Measures one engine without a server, in a process of its own: `engine_alone` starts it."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from loadtest.drive.random_adapters import LlamaShape, make_adapter
from server.engine.environment import choose_cpu_base, prepare_environment

SLOTS, RANK, STREAMS = 16, 8, 16
FEWEST_TOKEN, MOST_TOKEN = 1000, 49000
PROMPT_TOKENS = 32

Span = tuple[float, float]


@dataclass(frozen=True)
class Size:
    """How much is measured: a large model gets less."""

    answer_tokens: int
    prefill_tokens: int
    tries: int


class Engine:
    """vLLM's engine with adapters, in this process."""

    def __init__(self, base: Path, adapters: Path) -> None:
        """Load a base, and make as many random adapters as there are slots."""
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        config = json.loads((base / "config.json").read_text())
        shape = LlamaShape.from_config(config)
        adapters.mkdir(exist_ok=True)
        self._adapters = []
        for number in range(SLOTS):
            if not (adapters / str(number)).is_dir():
                make_adapter(adapters / str(number), shape, rank=RANK, seed=number)
            self._adapters.append(LoRARequest(str(number), number + 1, str(adapters / str(number))))
        self._llm = LLM(
            str(base),
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            max_model_len=2048,
            kv_cache_memory_bytes=1 << 30,
            enable_lora=True,
            max_loras=SLOTS,
            max_lora_rank=RANK,
            max_num_batched_tokens=256,
            enforce_eager=True,
        )
        self._random = random.Random(0)

    @property
    def core(self) -> Any:
        """What schedules steps."""
        return self._llm.llm_engine.engine_core.engine_core

    def seconds(self, streams: int, prompt: int, answer: int, adapters: int, tries: int) -> float:
        """The least time of some `tries` of all streams together, which use so many adapters."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        sampling = SamplingParams(
            max_tokens=answer, ignore_eos=True, detokenize=False, temperature=0
        )
        chosen = [self._adapters[i % adapters] if adapters else None for i in range(streams)]
        least = float("inf")
        for _ in range(tries):
            given = [
                TokensPrompt(
                    prompt_token_ids=[
                        self._random.randrange(FEWEST_TOKEN, MOST_TOKEN) for _ in range(prompt)
                    ]
                )
                for _ in range(streams)
            ]
            began = time.perf_counter()
            self._llm.generate(given, sampling, lora_request=chosen, use_tqdm=False)
            least = min(least, time.perf_counter() - began)
        return least

    def tokens_per_second(self, streams: int, adapters: int, size: Size) -> float:
        """Of decoding alone: what a first token takes is subtracted."""
        tokens = size.answer_tokens
        whole = self.seconds(streams, PROMPT_TOKENS, tokens, adapters, size.tries)
        first = self.seconds(streams, PROMPT_TOKENS, 1, adapters, size.tries)
        return streams * (tokens - 1) / (whole - first)

    def prefill_per_second(self, adapters: int, size: Size) -> float:
        """Of two prompts."""
        tokens = size.prefill_tokens
        return 2 * tokens / self.seconds(2, tokens, 1, adapters, size.tries)


def measure(engine: Engine, size: Size) -> dict[str, float]:
    """Return tokens per second by what is measured."""
    engine.seconds(2, PROMPT_TOKENS, 4, 2, 1)
    engine.seconds(STREAMS, PROMPT_TOKENS, 2, STREAMS, 1)  # loads all adapters
    found = {}
    for streams, counts in ((1, (0, 1)), (STREAMS, (0, 1, 4, 16))):
        for adapters in counts:
            name = f"{streams} streams, {adapters} adapters"
            found[name] = engine.tokens_per_second(streams, adapters, size)
    for adapters in (0, 1):
        found[f"prefill, {adapters} adapters"] = engine.prefill_per_second(adapters, size)
    return found


def parts_of_a_step(engine: Engine, size: Size) -> dict[str, float]:
    """Return the median milliseconds of each part of a single stream's step."""
    from vllm.model_executor.models.llama import LlamaForCausalLM, LlamaModel
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    engine.seconds(1, PROMPT_TOKENS, 4, 0, 1)
    places: dict[str, tuple[Any, str]] = {
        "layers": (LlamaModel, "forward"),
        "output layer": (LlamaForCausalLM, "compute_logits"),
        "model runner": (GPUModelRunner, "execute_model"),
        "sampling": (GPUModelRunner, "sample_tokens"),
        "core": (engine.core, "step_fn"),
    }
    with timed(places) as times:
        engine.seconds(1, PROMPT_TOKENS, size.answer_tokens, 0, 1)
    found = {
        name: 1000 * median(end - begin for begin, end in each) for name, each in times.items()
    }
    starts = [begin for begin, _ in times["core"]]
    whole = 1000 * median(later - earlier for earlier, later in pairwise(starts))
    inside = found["layers"] + found["output layer"]
    return {
        "layers": found["layers"],
        "output layer": found["output layer"],
        "batch and input tensors": found["model runner"] - inside,
        "sampling": found["sampling"],
        "scheduler": found["core"] - found["model runner"] - found["sampling"],
        "front end": whole - found["core"],
        "together": whole,
    }


@contextmanager
def timed(places: dict[str, tuple[Any, str]]) -> Iterator[dict[str, list[Span]]]:
    """Yield when each call of some functions began and ended, by a name for each."""
    times: dict[str, list[Span]] = {name: [] for name in places}

    def replacement(function: Callable[..., Any], spans: list[Span]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                spans.append((began, time.perf_counter()))

        return call

    before = {name: getattr(*place) for name, place in places.items()}
    for name, (owner, function) in places.items():
        setattr(owner, function, replacement(before[name], times[name]))
    try:
        yield times
    finally:
        for name, (owner, function) in places.items():
            setattr(owner, function, before[name])


def read_speed() -> float:
    """Bytes per second that this machine reads from memory with the threads of the engine."""
    import torch

    numbers = torch.ones(1 << 28, dtype=torch.float32)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        numbers.sum()
        times.append(time.perf_counter() - began)
    return numbers.nbytes / min(times)


def main() -> None:
    """Measure, and write the result as the last line."""
    given = json.loads(sys.argv[1])
    base = Path(given["base"])
    prepare_environment(str(base), "error", "grouped", Path(given["data_dir"]))
    choose_cpu_base(given["kernels"], given["quantization"])
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    engine = Engine(base, Path(given["adapters"]))
    size = Size(**given["size"])
    found = {"speeds": measure(engine, size), "parts": parts_of_a_step(engine, size)}
    print(json.dumps(found | {"read_speed": read_speed()}))


if __name__ == "__main__":
    main()
