"""Begins to read an adapter when the server's call arrives, not after the step that runs then.

vLLM's engine answers calls between two steps. With many requests a step takes tenths of a second,
and a load would wait for three of them: to begin, to learn that the adapter is read, and to get a
slot. Reading changes nothing that a step uses. So the thread that receives the calls begins it, and
the answer is sent as soon as the adapter is read.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequestType, UtilityOutput
from vllm.v1.engine.core import EngineCoreProc, EngineShutdownState
from vllm.v1.serial_utils import UtilityResult

from server.engine.worker.extension import PREPARE, WorkerAdapters, WorkerReply, answer_to_read

log = logging.getLogger(__name__)

Item = tuple[Any, Any]
"""A message to the engine as vLLM queues it: its kind, and what it holds."""


@functools.cache
def begin_reads_early() -> None:
    """Wrap the method with which vLLM's engine processes receive calls."""
    receive = EngineCoreProc.process_input_sockets

    @functools.wraps(receive)
    def receive_here(core: Any, *arguments: Any, **named: Any) -> None:
        core.input_queue.put_nowait = EarlyReads(core, core.input_queue.put_nowait)
        receive(core, *arguments, **named)

    EngineCoreProc.process_input_sockets = receive_here


class EarlyReads:
    """Is called with each message that arrives, in the thread that receives them."""

    def __init__(self, core: Any, put: Callable[[Item], None]) -> None:
        """Take vLLM's engine, and the method that queues messages for its loop."""
        self._core, self._put = core, put

    def __call__(self, item: Item) -> None:
        """Begin a read if the message asks for one that can begin now. Else queue the message."""
        kind, request = item
        try:
            has_begun = kind == EngineCoreRequestType.UTILITY and self._begin(*request)
        except Exception as error:  # must not end the thread that receives calls
            log.error("an adapter's read could not begin early: %r", error)
            has_begun = False
        if not has_begun:
            self._put(item)

    def _begin(self, client: int, call_id: int, name: str, arguments: Any) -> bool:
        if name != "collective_rpc" or not arguments or arguments[0] != PREPARE:
            return False
        adapters = self._adapters()
        if adapters is None or self._core.shutdown_state != EngineShutdownState.RUNNING:
            return False
        read = adapters.prepare(*arguments[2])
        if read is None:
            self._answer(client, call_id, WorkerReply.READY)
        else:
            read.add_done_callback(lambda done: self._answer(client, call_id, answer_to_read(done)))
        return True

    def _adapters(self) -> WorkerAdapters | None:
        """Return the worker's adapters, if it is in this process and its loop has made them."""
        worker = getattr(self._core.model_executor, "driver_worker", None)
        if worker is None or self._core.vllm_config.parallel_config.world_size != 1:
            return None
        adapters: WorkerAdapters | None = vars(worker.worker).get("_loraplex")
        return adapters

    def _answer(self, client: int, call_id: int, answer: str) -> None:
        """Send the answer of all workers, of which there is one."""
        output = UtilityOutput(call_id, result=UtilityResult([str(answer)]))
        self._core.output_queue.put_nowait((client, EngineCoreOutputs(utility_output=output)))
