"""Run in a process of its own: vLLM answers prompts on one base after the other, in float32.

Reads a JSON list of jobs from the standard input, and writes a line with the answers of each.
Engines in one process share its imports, which take longer than a tiny engine's start.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

Answer = tuple[list[int], list[float]]
"""Tokens and their log-probabilities."""


@dataclass(frozen=True)
class Job:
    """A base, the layers that adapters may change, and prompts with the adapter that answers."""

    base: str
    targets: list[str]
    batch: list[tuple[list[int], str | None]]


def answer_jobs(jobs: list[Job]) -> list[list[Answer]]:
    """Have each job answered by an engine of its own."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",  # more cores are no help to bases this small
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    result = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps([asdict(job) for job in jobs]),
        capture_output=True,
        text=True,
        env=environment,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith("[[[")]


def main() -> None:
    from vllm.distributed import cleanup_dist_env_and_memory

    for job in json.load(sys.stdin):
        print(json.dumps(_answers(Job(**job))), flush=True)
        cleanup_dist_env_and_memory()


def _answers(job: Job) -> list[Answer]:
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.lora.request import LoRARequest

    llm = LLM(
        job.base,
        dtype="float32",
        max_model_len=256,
        kv_cache_memory_bytes=64 << 20,
        skip_tokenizer_init=True,
        enable_lora=True,
        max_loras=2,
        max_lora_rank=8,
        lora_target_modules=job.targets,
        enable_prefix_caching=False,
    )
    paths = sorted({path for _, path in job.batch if path})
    adapters = {path: LoRARequest(path, number, path) for number, path in enumerate(paths, 1)}
    outputs = llm.generate(
        [TokensPrompt(prompt_token_ids=prompt) for prompt, _ in job.batch],
        SamplingParams(temperature=0, max_tokens=24, logprobs=0, ignore_eos=True, detokenize=False),
        lora_request=[adapters.get(path or "") for _, path in job.batch],
        use_tqdm=False,
    )
    return [_tokens_and_logprobs(output.outputs[0]) for output in outputs]


def _tokens_and_logprobs(answer: Any) -> Answer:
    tokens = list(answer.token_ids)
    return tokens, [e[t].logprob for t, e in zip(tokens, answer.logprobs, strict=True)]


if __name__ == "__main__":
    main()
