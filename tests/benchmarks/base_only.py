"""What base requests pay for adapters being possible: `python -m tests.benchmarks.base_only`.

Two engines of the bundled base, each in a process of its own, one with LoRA and one without. They
take turns with the same prompts; each round gives one ratio of speeds.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from collections import defaultdict
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

from adapters_registry.families import TARGETS
from server.bundled_base import ensure_bundled_base
from server.engine.environment import prepare_environment

ROUNDS = 8
PHASES = {"decode": (16, 32, 64), "prefill": (4, 900, 1), "single stream": (1, 32, 64)}
"""Requests at once, tokens in, tokens out of each."""


def engine(base: str, with_lora: bool, channel: Connection) -> None:
    """Answer (prompts, tokens out) with the seconds that they took; end with the channel."""
    prepare_environment(base, "info", "grouped", Path("var"))
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    lora = {
        "enable_lora": True,
        "max_loras": 16,
        "max_lora_rank": 16,
        "lora_target_modules": list(TARGETS),
    }
    llm = LLM(
        base,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        max_model_len=4096,
        kv_cache_memory_bytes=1 << 30,
        **(lora if with_lora else {}),
    )
    channel.send("ready")
    while request := channel.recv():
        prompts, tokens_out = request
        sampling = SamplingParams(max_tokens=tokens_out, ignore_eos=True, detokenize=False)
        began = time.perf_counter()
        llm.generate(
            [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts], sampling, use_tqdm=False
        )
        channel.send(time.perf_counter() - began)


def main() -> None:
    base, rng = str(ensure_bundled_base()), random.Random(0)
    spawn, engines = multiprocessing.get_context("spawn"), {}
    for with_lora in (True, False):
        channel, theirs = spawn.Pipe()
        process = spawn.Process(target=engine, args=(base, with_lora, theirs), daemon=True)
        process.start()
        channel.recv()
        engines[with_lora] = (process, channel)

    seconds: dict[str, list[dict[bool, float]]] = defaultdict(list)
    for round_ in range(ROUNDS + 1):  # the first only warms up
        for phase, (num_requests, tokens_in, tokens_out) in PHASES.items():
            prompts = [
                [rng.randrange(1000, 49_000) for _ in range(tokens_in)] for _ in range(num_requests)
            ]
            took = {}
            for with_lora in (True, False) if round_ % 2 else (False, True):
                channel = engines[with_lora][1]
                channel.send((prompts, tokens_out))
                took[with_lora] = channel.recv()
            seconds[phase].append(took)
    for process, channel in engines.values():
        channel.send(None)
        process.join()

    result = {
        phase: {
            "speed_ratio": round(median(t[False] / t[True] for t in rounds[1:]), 3),
            "rounds": [round(t[False] / t[True], 2) for t in rounds[1:]],
        }
        for phase, rounds in seconds.items()
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
