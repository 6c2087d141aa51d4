"""A stand-in for vLLM's client: it computes two choices in two steps, as soon as it may."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

PROMPT = {"prompt_token_ids": [1, 2, 3]}
NUM_CHOICES = NUM_STEPS = 2
ANSWER = SimpleNamespace(outputs=[SimpleNamespace(index=0, finish_reason="stop")], finished=True)
SAMPLING = SimpleNamespace(n=1, prompt_logprobs=None)
LORA = SimpleNamespace(lora_int_id=7, lora_name="acme/home@1")


class Client:
    """Gives two choices three tokens in each of two steps; `generate` shows them at the end."""

    def __init__(self) -> None:
        self.output_processor = SimpleNamespace(
            request_states={},
            external_req_ids=defaultdict(list),
            process_outputs=self._process,
            abort_requests=self._abort,
        )
        self.engine_core = SimpleNamespace(get_output_async=self._output)
        self.vllm_config = SimpleNamespace(speculative_config=None)
        self.ends_with = "stop"
        self.num_closed = self.num_processed = 0
        self.priorities: list[int] = []
        self.may_end = asyncio.Event()
        self.may_end.set()

    def _process(self, outputs: list[Any], timestamp: float) -> int:
        self.num_processed += len(outputs)
        for output in outputs:
            if output.finish_reason and output.request_id in self.output_processor.request_states:
                self._finish(output.request_id)
        return len(outputs)

    def _abort(self, request_ids: list[str], internal: bool) -> list[str]:
        for request_id in request_ids:
            self._finish(request_id)
        return request_ids

    def _finish(self, request_id: str) -> None:
        state = self.output_processor.request_states.pop(request_id)
        names = self.output_processor.external_req_ids
        names[state.external_req_id].remove(request_id)
        if not names[state.external_req_id]:
            del names[state.external_req_id]

    async def abort(self, request_id: str) -> None:
        ids = list(self.output_processor.external_req_ids.get(request_id, []))
        self.output_processor.abort_requests(ids, internal=True)
        if ids:
            self.ends_with = "abort"
            self.may_end.set()

    async def _output(self) -> Any:
        return SimpleNamespace(outputs=[], scheduler_stats=SimpleNamespace(num_running_reqs=1))

    async def generate(
        self, _prompt: Any, _sampling: Any, request_id: str, **options: Any
    ) -> AsyncIterator[Any]:
        self.priorities.append(options["priority"])
        states = self.output_processor.request_states
        ids = [f"{choice}_{request_id}-{len(states)}" for choice in range(NUM_CHOICES)]
        for choice, each in enumerate(ids):
            states[each] = SimpleNamespace(external_req_id=request_id, request_index=choice)
            self.output_processor.external_req_ids[request_id].append(each)
        try:
            for step in range(NUM_STEPS):
                finish = "stop" if step == NUM_STEPS - 1 and self.may_end.is_set() else None
                outputs = [
                    SimpleNamespace(request_id=i, new_token_ids=[7, 7, 7], finish_reason=finish)
                    for i in (*ids, "gone")
                ]
                assert self.output_processor.process_outputs(outputs, timestamp=1.0) == 3
            yield deepcopy(ANSWER)
            await self.may_end.wait()
            if self.ends_with == "abort":
                yield SimpleNamespace(outputs=[SimpleNamespace(finish_reason="abort")])
        finally:
            self.num_closed += 1


def allow(_parameters: Any) -> None:
    """Find nothing wrong with a request's parameters."""
