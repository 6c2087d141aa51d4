"""Stands in for vLLM's engine process: gives every running request a token at a fixed pace.

Everything in the API process is the real one: handlers, tokenizer, detokenizer, output processor.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.outputs import LogprobsLists

FIRST_TOKEN_ID, NUM_TOKEN_IDS = 300, 200


class FakeCore:
    """The part of vLLM's `AsyncMPClient` that `AsyncLLM` calls."""

    engine_ranks_managed = (0,)

    def __init__(self, step_seconds: float) -> None:
        self.resources = SimpleNamespace(engine_dead=False)
        self._step_seconds = step_seconds
        self._running: dict[str, tuple[Any, int]] = {}
        self._wakened = asyncio.Event()
        self._next_step = 0.0

    async def get_supported_tasks_async(self) -> tuple[str, ...]:
        return ("generate",)

    async def reset_mm_cache_async(self) -> None:
        pass

    async def collective_rpc_async(self, *_args: Any, **_options: Any) -> list[Any]:
        return [{"slots": [], "host": []}]

    async def add_request_async(self, request: Any) -> None:
        self._running[request.request_id] = request, 0
        self._wakened.set()

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._running.pop(request_id, None)

    async def get_output_async(self) -> EngineCoreOutputs:
        loop = asyncio.get_running_loop()
        while not self._running:
            self._wakened.clear()
            await self._wakened.wait()
        self._next_step = max(self._next_step + self._step_seconds, loop.time())
        await asyncio.sleep(self._next_step - loop.time())
        stats = SchedulerStats(num_running_reqs=len(self._running))
        outputs = [self._output(*each) for each in list(self._running.items())]
        return EngineCoreOutputs(outputs=outputs, scheduler_stats=stats)

    def shutdown(self, timeout: float | None = None) -> None:
        self.resources.engine_dead = True

    def _output(self, request_id: str, running: tuple[Any, int]) -> EngineCoreOutput:
        request, num_tokens = running
        token = FIRST_TOKEN_ID + num_tokens % NUM_TOKEN_IDS
        is_last = num_tokens + 1 >= request.sampling_params.max_tokens
        if is_last:
            del self._running[request_id]
        else:
            self._running[request_id] = request, num_tokens + 1
        return EngineCoreOutput(
            request_id,
            [token],
            new_logprobs=_logprobs(token, request.sampling_params.logprobs),
            finish_reason=FinishReason.LENGTH if is_last else None,
        )


def _logprobs(token: int, wanted: int | None) -> LogprobsLists | None:
    if wanted is None:
        return None
    ids = np.array([[token, *range(wanted)]], dtype=np.int32)
    return LogprobsLists(ids, np.full(ids.shape, -1.0, dtype=np.float32), np.array([1]))


def install(step_seconds: float) -> None:
    """Have every `AsyncLLM` that is made in this process talk to a `FakeCore`."""

    def make(vllm_config: Any, *_args: Any, **_options: Any) -> FakeCore:
        vllm_config.cache_config.num_gpu_blocks = 1000
        return FakeCore(step_seconds)

    EngineCoreClient.make_async_mp_client = staticmethod(make)
