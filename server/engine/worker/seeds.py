"""Keeps the seeds of requests on CPU whose prompts take several steps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np


@functools.cache
def keep_seeds() -> None:
    """Have vLLM's model runner draw nothing by the seed of a request that gets no token yet.

    After each step of a prompt but the last, vLLM turns the request's random numbers back to where
    they were. PyTorch's generators for CPU can't do that, and the engine died (vLLM 0.32).
    """
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    GPUModelRunner.sample_tokens = without_unfinished(GPUModelRunner.sample_tokens)


def without_unfinished(sample: Callable[..., Any]) -> Callable[..., Any]:
    """Return `sample` without the generators of requests whose tokens would be dropped."""

    @functools.wraps(sample)
    def sample_tokens(runner: Any, *args: Any, **options: Any) -> Any:
        batch = runner.input_batch
        unfinished = np.flatnonzero(runner.discard_request_mask.np[: batch.num_reqs]).tolist()
        kept = {row: batch.generators.pop(row) for row in unfinished if row in batch.generators}
        try:
            return sample(runner, *args, **options)
        finally:
            batch.generators.update(kept)

    return sample_tokens
