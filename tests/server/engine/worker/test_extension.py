"""The worker's book-keeping, with a stand-in for vLLM's manager of slots."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import pytest

from server.engine.worker.extension import WorkerAdapters, WorkerReply


class Manager:
    """What `WorkerAdapters` uses of vLLM's `LoRAModelManager`."""

    def __init__(self, slots: int) -> None:
        self._registered_adapters: dict[int, Any] = {}
        self.lora_index_to_id: list[int | None] = [None] * slots

    def activate_adapter(self, version_id: int) -> None:
        assert version_id in self._registered_adapters
        self.lora_index_to_id[self.lora_index_to_id.index(None)] = version_id

    def deactivate_adapter(self, version_id: int) -> None:
        if version_id in self.lora_index_to_id:
            self.lora_index_to_id[self.lora_index_to_id.index(version_id)] = None

    def remove_adapter(self, version_id: int) -> None:
        self.deactivate_adapter(version_id)
        self._registered_adapters.pop(version_id, None)


class Worker:
    """A worker of two slots whose reads end when told; a path of "bad" can't be read."""

    def __init__(self) -> None:
        self.may_read = threading.Event()
        self.may_read.set()
        self.reads: list[int] = []
        self.cleared: list[int] = []
        self.batch: set[int] = set()
        self.manager = Manager(slots=2)
        self.adapters = WorkerAdapters(
            self.manager, self._read, self.cleared.append, lambda: self.batch
        )

    def _read(self, version_id: int, name: str, path: str) -> str:
        self.may_read.wait(10)
        self.reads.append(version_id)
        if path == "bad":
            raise ValueError(f"{name} is truncated")
        return f"weights of {name}"

    def wait(self) -> None:
        """Until all reads have ended."""
        self.adapters._reader.submit(lambda: None).result(10)

    def prepare(self, *version_ids: int) -> None:
        for version_id in version_ids:
            self.adapters.prepare(version_id, f"a@{version_id}", "good")
        self.wait()
        assert all(
            self.adapters.prepared(version_id) == WorkerReply.READY for version_id in version_ids
        )


@pytest.fixture
def worker() -> Worker:
    return Worker()


def test_an_adapter_is_read_once_and_waited_for(worker: Worker) -> None:
    worker.may_read.clear()
    for _ in range(3):
        worker.adapters.prepare(7, "a@7", "good")
    assert worker.adapters.prepared(7) == WorkerReply.READING
    assert worker.adapters.install(7, []) == WorkerReply.UNKNOWN
    worker.may_read.set()
    worker.wait()
    assert worker.adapters.prepared(7) == WorkerReply.READY
    worker.adapters.prepare(7, "a@7", "good")
    worker.wait()
    assert worker.reads == [7]
    assert worker.adapters.residency() == {"slots": [], "host": [7]}


def test_what_cannot_be_read_leaves_nothing_and_may_be_tried_again(worker: Worker) -> None:
    worker.adapters.prepare(7, "a@7", "bad")
    worker.wait()
    assert worker.adapters.prepared(7) == "a@7 is truncated"
    assert worker.adapters.install(7, []) == WorkerReply.UNKNOWN
    assert worker.adapters.residency() == {"slots": [], "host": []}
    worker.prepare(7)
    assert worker.adapters.install(7, []) == WorkerReply.DONE


def test_slots_are_taken_from_those_who_need_not_be_kept(worker: Worker) -> None:
    worker.prepare(1, 2, 3)
    assert worker.adapters.install(1, [1]) == WorkerReply.DONE
    assert worker.adapters.install(1, [1]) == WorkerReply.DONE
    assert worker.adapters.install(2, [2]) == WorkerReply.DONE, "a free slot is taken first"
    assert worker.adapters.residency()["slots"] == [1, 2]
    assert worker.adapters.install(3, [1, 2, 3]) == WorkerReply.IN_USE
    assert worker.adapters.install(3, [1, 3]) == WorkerReply.DONE
    assert worker.adapters.residency() == {"slots": [1, 3], "host": [1, 2, 3]}


def test_what_the_batch_uses_stays(worker: Worker) -> None:
    worker.prepare(1, 2, 3)
    worker.adapters.install(1, [])
    worker.adapters.install(2, [])
    worker.batch = {1, 2}
    assert worker.adapters.evict(1) == WorkerReply.IN_USE
    assert worker.adapters.install(3, []) == WorkerReply.IN_USE
    assert worker.adapters.residency() == {"slots": [1, 2], "host": [1, 2, 3]}
    worker.batch = {2}
    assert worker.adapters.evict(1) == WorkerReply.DONE
    assert worker.cleared == [0]
    assert worker.adapters.residency() == {"slots": [2], "host": [2, 3]}


def test_evicting_the_unknown_and_what_is_being_read(worker: Worker) -> None:
    assert worker.adapters.evict(5) == WorkerReply.DONE
    worker.may_read.clear()
    worker.adapters.prepare(6, "a@6", "good")
    worker.adapters.prepare(7, "a@7", "good")
    for version_id in (6, 7):
        assert worker.adapters.evict(version_id) == WorkerReply.DONE
    worker.may_read.set()
    worker.wait()
    assert worker.adapters.residency() == {"slots": [], "host": []}
    assert worker.adapters.prepared(6) == WorkerReply.UNKNOWN
    assert 7 not in worker.reads, "it was read for nothing"


class Beside:
    """A filling that ends when told."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.fills: dict[int, Future[None]] = {}
        self.finished: list[int] = []

    def begin(self, version_id: int) -> Future[None] | None:
        self.manager.activate_adapter(version_id)
        self.fills[version_id] = Future()
        return self.fills[version_id]

    def finish(self, version_id: int) -> None:
        assert self.fills[version_id].done()
        self.finished.append(version_id)


@pytest.fixture
def beside(worker: Worker) -> Beside:
    filling = Beside(worker.manager)
    worker.adapters._filling = filling
    return filling


def test_a_slot_is_usable_once_it_is_filled(worker: Worker, beside: Beside) -> None:
    worker.prepare(1)
    assert worker.adapters.install(1, []) == WorkerReply.FILLING
    assert worker.adapters.install(1, []) == WorkerReply.FILLING
    assert worker.adapters.residency()["slots"] == []
    assert not beside.finished
    beside.fills[1].set_result(None)
    assert worker.adapters.install(1, []) == WorkerReply.DONE
    assert worker.adapters.install(1, []) == WorkerReply.DONE
    assert beside.finished == [1]
    assert worker.adapters.residency()["slots"] == [1]


def test_a_slot_that_is_being_filled_is_not_taken(worker: Worker, beside: Beside) -> None:
    worker.prepare(1, 2, 3)
    assert worker.adapters.install(1, []) == WorkerReply.FILLING
    assert worker.adapters.install(2, []) == WorkerReply.FILLING
    assert worker.adapters.install(3, []) == WorkerReply.IN_USE
    assert worker.adapters.evict(1) == WorkerReply.IN_USE
    beside.fills[1].set_result(None)
    assert worker.adapters.install(3, []) == WorkerReply.FILLING, "nobody asked about 1 again"
    assert worker.manager.lora_index_to_id == [3, 2]


def test_a_slot_that_could_not_be_filled_is_free_again(worker: Worker, beside: Beside) -> None:
    worker.prepare(1)
    worker.adapters.install(1, [])
    beside.fills[1].set_exception(RuntimeError("the card is gone"))
    assert worker.adapters.install(1, []) == WorkerReply.UNKNOWN
    assert worker.manager.lora_index_to_id == [None, None]
    assert not beside.finished
    worker.adapters.install(1, [])
    beside.fills[1].set_result(None)
    assert worker.adapters.install(1, []) == WorkerReply.DONE


def test_an_adapter_leaves_after_its_slot_was_filled(worker: Worker, beside: Beside) -> None:
    worker.prepare(1)
    worker.adapters.install(1, [])
    assert worker.adapters.evict(1) == WorkerReply.IN_USE
    beside.fills[1].set_result(None)
    assert worker.adapters.evict(1) == WorkerReply.DONE
    assert worker.manager.lora_index_to_id == [None, None]
