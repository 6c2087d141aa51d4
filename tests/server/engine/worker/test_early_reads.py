"""Reads that begin when the call arrives, with stand-ins for vLLM's engine and its queues."""

from __future__ import annotations

import queue
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.engine import EngineCoreRequestType
from vllm.v1.engine.core import EngineCoreProc, EngineShutdownState

from server.engine.worker.early_reads import EarlyReads, begin_reads_early
from server.engine.worker.extension import PREPARE, WorkerAdapters, WorkerReply
from tests.server.engine.worker.test_extension import Worker

CLIENT, CALL = 3, 41


class Core:
    """What `EarlyReads` uses of vLLM's engine. `arrive` is what its receiving thread does."""

    def __init__(self, adapters: WorkerAdapters | None, workers: int = 1) -> None:
        worker = SimpleNamespace() if adapters is None else SimpleNamespace(_loraplex=adapters)
        self.model_executor = SimpleNamespace(driver_worker=SimpleNamespace(worker=worker))
        parallel = SimpleNamespace(world_size=workers)
        self.vllm_config = SimpleNamespace(parallel_config=parallel)
        self.shutdown_state = EngineShutdownState.RUNNING
        self.output_queue: queue.Queue[Any] = queue.Queue()
        self.queued: list[Any] = []
        self._receive = EarlyReads(self, self.queued.append)

    def arrive(self, *arguments: Any, method: str = PREPARE, kind: Any = None) -> Any:
        """A call arrives. Returns the message."""
        request = (CLIENT, CALL, "collective_rpc", [method, None, list(arguments), None])
        item = (kind or EngineCoreRequestType.UTILITY, request)
        self._receive(item)
        return item

    def answer(self) -> list[str]:
        client, outputs = self.output_queue.get(timeout=10)
        assert (client, outputs.utility_output.call_id) == (CLIENT, CALL)
        assert outputs.utility_output.failure_message is None
        answers: list[str] = outputs.utility_output.result.result
        return answers


@pytest.fixture
def worker() -> Worker:
    return Worker()


def test_the_answer_comes_when_the_adapter_is_read(worker: Worker) -> None:
    core = Core(worker.adapters)
    worker.may_read.clear()
    core.arrive(7, "a@7", "good")
    assert core.output_queue.empty()
    worker.may_read.set()
    assert core.answer() == [WorkerReply.READY]
    assert worker.adapters.install(7, []) == WorkerReply.DONE
    assert core.queued == []


def test_an_adapter_in_host_memory_is_not_read_again(worker: Worker) -> None:
    core = Core(worker.adapters)
    worker.prepare(7)
    core.arrive(7, "a@7", "good")
    assert core.answer() == [WorkerReply.READY]
    assert worker.reads == [7]


def test_the_answer_says_why_an_adapter_cannot_be_read(worker: Worker) -> None:
    core = Core(worker.adapters)
    core.arrive(7, "a@7", "bad")
    assert core.answer() == ["a@7 is truncated"]


def test_a_read_that_was_given_up_is_answered_too(worker: Worker) -> None:
    core = Core(worker.adapters)
    worker.may_read.clear()
    core.arrive(6, "a@6", "good")
    core.arrive(7, "a@7", "good")
    worker.adapters.evict(7)
    assert core.answer() == [WorkerReply.UNKNOWN]
    worker.may_read.set()
    assert core.answer() == [WorkerReply.READY]


@pytest.mark.parametrize(
    ("method", "kind"),
    [("loraplex_install", None), (PREPARE, EngineCoreRequestType.ADD)],
)
def test_other_messages_wait_for_the_loop(worker: Worker, method: str, kind: Any) -> None:
    core = Core(worker.adapters)
    item = core.arrive(7, "a@7", "good", method=method, kind=kind)
    assert core.queued == [item]
    assert worker.reads == []


@pytest.mark.parametrize("why", ["several workers", "not made yet", "ending", "wrong arguments"])
def test_what_cannot_begin_early_is_left_to_the_loop(worker: Worker, why: str) -> None:
    adapters = None if why == "not made yet" else worker.adapters
    core = Core(adapters, workers=2 if why == "several workers" else 1)
    if why == "ending":
        core.shutdown_state = EngineShutdownState.REQUESTED
    item = core.arrive(7) if why == "wrong arguments" else core.arrive(7, "a@7", "good")
    assert core.queued == [item]


def test_both_threads_may_ask_for_the_same_adapter(worker: Worker) -> None:
    core = Core(worker.adapters)
    worker.may_read.clear()
    threads = [threading.Thread(target=core.arrive, args=(7, "a@7", "good")) for _ in range(8)]
    for thread in threads:
        thread.start()
    worker.adapters.prepare(7, "a@7", "good")
    for thread in threads:
        thread.join()
    worker.may_read.set()
    assert [core.answer() for _ in threads] == 8 * [[WorkerReply.READY]]
    assert worker.reads == [7]


def test_calls_go_through_it_from_when_the_engine_receives_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    puts: list[Any] = []

    def receive(core: Any, addresses: list[str]) -> None:
        puts.append(core.input_queue.put_nowait)

    monkeypatch.setattr(EngineCoreProc, "process_input_sockets", receive)
    begin_reads_early.__wrapped__()
    core = SimpleNamespace(input_queue=queue.Queue())
    EngineCoreProc.process_input_sockets(core, ["an address"])
    assert isinstance(puts[0], EarlyReads)
