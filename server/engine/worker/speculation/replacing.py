"""Puts our guesses and their check into vLLM's model runner."""

from __future__ import annotations

import copy
import functools
from typing import Any


@functools.cache
def replace_parts() -> None:
    """Replace what vLLM's model runner takes for speculation on CPU.

    A model runner makes its proposer before all else that is replaced here.
    """
    from vllm.v1.worker import gpu_model_runner

    from server.engine.worker.speculation.verifier import Verifier

    gpu_model_runner.RejectionSampler = Verifier
    gpu_model_runner.build_logitsprocs = _WithAllProcessors(gpu_model_runner.build_logitsprocs)
    gpu_model_runner.GPUModelRunner.propose_draft_token_ids = _propose
    gpu_model_runner.GPUModelRunner._input_fits_in_drafter = _always


class _WithAllProcessors:
    """Makes vLLM's processors of logits as without speculation.

    vLLM leaves out those of `min_p` and `logit_bias`, which it doesn't apply to guesses. Here
    requests with these parameters have no guesses.
    """

    def __init__(self, stock: Any) -> None:
        self._stock = stock

    def __call__(self, config: Any, *others: Any, **options: Any) -> Any:
        plain = copy.copy(config)
        plain.speculative_config = None
        return self._stock(plain, *others, **options)


def _propose(runner: Any, _step: Any, sampled: Any, *_others: Any, **_options: Any) -> Any:
    return runner.drafter.propose(runner, sampled)


def _always(_runner: Any, _attention: Any) -> bool:
    """Say that requests have room for guesses: the proposer looks at each one's length."""
    return True
