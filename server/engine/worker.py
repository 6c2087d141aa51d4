"""Added to vLLM's workers: adapters come and go on our word, and are read outside the step.

vLLM reads an adapter inside its loop, and its own LRU decides who leaves. Here a thread reads and
converts (`prepare`); what the loop still does is to note the result and to fill the slot. With
several workers each has its own part of every adapter; a call reaches all.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from typing import Any


class Answer(enum.StrEnum):
    """What the calls answer; `loraplex_prepared` may also answer with an error's text."""

    READING = "reading"
    READY = "ready"
    DONE = "done"
    UNKNOWN = "unknown"
    IN_USE = "in use"


class WorkerAdapters:
    """The adapters of one worker: being read, in host memory, in slots.

    Its methods are called in the engine's loop, between two steps; only `_read` runs elsewhere.
    """

    def __init__(
        self,
        manager: Any,
        read: Callable[[int, str, str], Any],
        clear_slot: Callable[[int], None],
        ids_in_batch: Callable[[], set[int]],
    ) -> None:
        """Take vLLM's `LoRAModelManager`, and what to do with a file, a slot and the batch."""
        self._manager = manager
        self._clear_slot = clear_slot
        self._read = read
        self._ids_in_batch = ids_in_batch
        # One thread: what is read at the same time would only slow the step further.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="adapter-reader")
        self._reads: dict[int, Future[Any]] = {}

    def prepare(self, lora_id: int, name: str, path: str) -> None:
        """Begin to read an adapter into host memory, unless it is there or being read."""
        read = self._reads.get(lora_id)
        if self._in_host(lora_id) or (read is not None and not _failed(read)):
            return
        self._reads[lora_id] = self._reader.submit(self._read, lora_id, name, path)

    def prepared(self, lora_id: int) -> str:
        """`READING`, `READY`, `UNKNOWN`, or why it can't be read."""
        if (read := self._reads.get(lora_id)) is not None:
            if not read.done():
                return Answer.READING
            if (error := read.exception()) is not None:
                return str(error) or repr(error)
            self._manager._registered_adapters[lora_id] = read.result()
            del self._reads[lora_id]
        return Answer.READY if self._in_host(lora_id) else Answer.UNKNOWN

    def install(self, lora_id: int, kept_ids: list[int]) -> Answer:
        """Move an adapter from host memory to a free slot, or else to one that needn't be kept.

        Whoever had it stays in host memory.
        """
        if self.prepared(lora_id) != Answer.READY:
            return Answer.UNKNOWN
        if lora_id in self._manager.lora_index_to_id:
            return Answer.DONE
        slots = self._manager.lora_index_to_id
        if None not in slots:
            kept = {*kept_ids, *self._ids_in_batch()}
            victim_id = next((holder for holder in slots if holder not in kept), None)
            if victim_id is None:
                return Answer.IN_USE
            self._manager.deactivate_adapter(victim_id)
        self._manager.activate_adapter(lora_id)
        return Answer.DONE

    def evict(self, lora_id: int) -> Answer:
        """Free an adapter's slot and host memory; nothing happens while the batch uses it."""
        if lora_id in self._ids_in_batch():
            return Answer.IN_USE
        if (read := self._reads.pop(lora_id, None)) is not None:
            read.cancel()  # one that runs already ends unnoticed
        if lora_id in self._manager.lora_index_to_id:
            self._clear_slot(self._manager.lora_index_to_id.index(lora_id))
        self._manager.remove_adapter(lora_id)
        return Answer.DONE

    def residency(self) -> dict[str, list[int]]:
        """The ids in slots, and those in host memory (the former are there too)."""
        for lora_id in list(self._reads):
            self.prepared(lora_id)
        slots = [lora_id for lora_id in self._manager.lora_index_to_id if lora_id is not None]
        return {"slots": slots, "host": list(self._manager._registered_adapters)}

    def _in_host(self, lora_id: int) -> bool:
        return lora_id in self._manager._registered_adapters


class WorkerExtension:
    """Mixed into vLLM's worker class (`--worker-extension-cls`); called by name from outside."""

    model_runner: Any

    def loraplex_prepare(self, lora_id: int, name: str, path: str) -> None:
        """See `WorkerAdapters.prepare`."""
        self._loraplex.prepare(lora_id, name, path)

    def loraplex_prepared(self, lora_id: int) -> str:
        """See `WorkerAdapters.prepared`."""
        return str(self._loraplex.prepared(lora_id))

    def loraplex_install(self, lora_id: int, kept_ids: list[int]) -> str:
        """See `WorkerAdapters.install`."""
        return str(self._loraplex.install(lora_id, kept_ids))

    def loraplex_evict(self, lora_id: int) -> str:
        """See `WorkerAdapters.evict`."""
        return str(self._loraplex.evict(lora_id))

    def loraplex_residency(self) -> dict[str, list[int]]:
        """See `WorkerAdapters.residency`."""
        return self._loraplex.residency()

    @cached_property
    def _loraplex(self) -> WorkerAdapters:
        from server.engine.reading import AdapterReader
        from server.engine.slots import clear_slot

        manager = self.model_runner.lora_manager
        return WorkerAdapters(
            manager._adapter_manager,
            AdapterReader(manager).read,
            partial(clear_slot, manager._adapter_manager),
            partial(_ids_in_batch, self.model_runner),
        )


def _ids_in_batch(runner: Any) -> set[int]:
    """The adapters of requests that the last step ran and that aren't known to have ended."""
    if (state := getattr(runner, "lora_state", None)) is not None:  # vLLM's second model runner
        return {request.lora_int_id for request in state.lora_requests.values()}
    return set(runner.input_batch.lora_id_to_lora_request)


def _failed(read: Future[Any]) -> bool:
    return read.done() and read.exception() is not None
