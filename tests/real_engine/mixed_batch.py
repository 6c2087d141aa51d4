"""Run in a process of its own: vLLM answers prompts, each with its own adapter, in batches.

Reads a JSON job from the standard input, writes the answers' tokens and log-probabilities. Nothing
but vLLM and our plugin for it is in play: no gate.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from server.engine.environment import CPU_LORA_KERNELS

Batch = list[tuple[list[int], Path | None]]
"""Prompts, each with the adapter that answers it or none."""
Answer = tuple[list[int], list[float]]
"""Tokens and their log-probabilities."""


def answer_batches(
    base: Path,
    batches: list[Batch],
    operators: str = "grouped",
    max_tokens: int = 16,
    **engine: Any,
) -> list[list[Answer]]:
    """Start an engine, and have it answer one batch after the other.

    `operators` may also be "interpreted": those for GPUs, in Triton's interpreter.
    """
    job = {
        "base": str(base),
        "batches": [[(prompt, path and str(path)) for prompt, path in batch] for batch in batches],
        "max_tokens": max_tokens,
        "interpreted": operators == "interpreted",
        "engine": {"max_model_len": 512, "dtype": "bfloat16", **engine},
    }
    environment = os.environ | {
        CPU_LORA_KERNELS: operators,
        "OMP_NUM_THREADS": "1",  # more cores are no help to a base this small
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    if operators == "interpreted":
        environment |= {
            CPU_LORA_KERNELS: "stock",
            "PYTHONPATH": str(Path(__file__).parents[2] / ".triton"),
            "TRITON_INTERPRET": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # `_interpret_gpu_operators` is for this process
        }
    result = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    answers: list[list[tuple[list[int], list[float]]]] = json.loads(result.stdout.splitlines()[-1])
    return answers


def main() -> None:
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.lora.request import LoRARequest

    job: dict[str, Any] = json.load(sys.stdin)
    if job["interpreted"]:
        _interpret_gpu_operators()
    llm = LLM(
        job["base"],
        skip_tokenizer_init=True,
        enable_lora=True,
        enable_prefix_caching=False,
        **job["engine"],
    )
    adapters = {
        path: LoRARequest(path, number, path)
        for number, path in enumerate(sorted({p for b in job["batches"] for _, p in b if p}), 1)
    }
    answers = []
    for batch in job["batches"]:
        outputs = llm.generate(
            [TokensPrompt(prompt_token_ids=prompt) for prompt, _ in batch],
            SamplingParams(
                temperature=0,
                max_tokens=job["max_tokens"],
                logprobs=0,
                ignore_eos=True,
                detokenize=False,
            ),
            lora_request=[adapters.get(path) for _, path in batch],
            use_tqdm=False,
        )
        answers.append([_tokens_and_logprobs(output) for output in outputs])
    print(json.dumps(answers))


def _interpret_gpu_operators() -> None:
    from vllm.platforms import current_platform

    wrapper = "server.engine.worker.lora_gpu.punica.FusedPunicaWrapper"
    type(current_platform).get_punica_wrapper = classmethod(lambda _platform: wrapper)


def _tokens_and_logprobs(output: Any) -> tuple[list[int], list[float]]:
    """The answer's tokens and their log-probabilities."""
    answer = output.outputs[0]
    tokens = list(answer.token_ids)
    logprobs = [entry[token].logprob for token, entry in zip(tokens, answer.logprobs, strict=True)]
    return tokens, logprobs


if __name__ == "__main__":
    main()
