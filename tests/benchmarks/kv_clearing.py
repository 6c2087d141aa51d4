"""What clearing KV blocks before reuse costs: `python -m tests.benchmarks.kv_clearing`.

One engine of the bundled base, in this process; the switch is turned on and off between rounds.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from statistics import median

from server.bundled_base import ensure_bundled_base
from server.engine.environment import prepare_environment

ROUNDS = 8
PHASES = {"prefill": (1, 1200, 1), "decode": (16, 32, 64), "single stream": (1, 32, 64)}
"""Requests at once, tokens in, tokens out of each."""


def main() -> None:
    base = str(ensure_bundled_base())
    prepare_environment(base, "info", "grouped", Path("var"))
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    llm = LLM(
        base,
        skip_tokenizer_init=True,
        enable_lora=True,
        enable_prefix_caching=False,
        max_model_len=4096,
        kv_cache_memory_bytes=1 << 30,
    )
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    assert scheduler.needs_kv_cache_zeroing, "the plugin didn't turn clearing on"
    rng, clearing = random.Random(0), 0.0
    clear_blocks = CPUModelRunner._zero_block_ids

    def timed(runner: CPUModelRunner, blocks: list[int]) -> None:
        nonlocal clearing
        began = time.perf_counter()
        clear_blocks(runner, blocks)
        clearing += time.perf_counter() - began

    CPUModelRunner._zero_block_ids = timed

    def run(num_requests: int, tokens_in: int, tokens_out: int) -> float:
        tokens = [
            [rng.randrange(1000, 49_000) for _ in range(tokens_in)] for _ in range(num_requests)
        ]
        prompts = [TokensPrompt(prompt_token_ids=prompt) for prompt in tokens]
        sampling = SamplingParams(max_tokens=tokens_out, ignore_eos=True, detokenize=False)
        began = time.perf_counter()
        llm.generate(prompts, sampling, use_tqdm=False)
        return time.perf_counter() - began

    result = {}
    for phase, shape in PHASES.items():
        run(*shape)
        seconds: dict[bool, list[float]] = {True: [], False: []}
        clearing = 0.0
        for _ in range(ROUNDS):
            for scheduler.needs_kv_cache_zeroing in (True, False):
                seconds[scheduler.needs_kv_cache_zeroing].append(run(*shape))
        ratio = median(on / off for on, off in zip(seconds[True], seconds[False], strict=True))
        share = clearing / sum(seconds[True])
        result[phase] = {"ratio": round(ratio, 3), "clearing_share": round(share, 4)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
