"""Adds methods to vLLM's workers through which the server loads and evicts adapters.

vLLM on its own reads an adapter inside its loop, and its LRU decides which one is evicted. Here a
thread reads and converts it (`prepare`), and the loop only takes the result and fills the slot. If
there are several workers, each has its own part of every adapter, and a call reaches all of them.
"""

from __future__ import annotations

import enum
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol

from server.engine.environment import gpu_lora_streams

if TYPE_CHECKING:
    from server.engine.worker.lora_gpu.filling import SlotFilling

log = logging.getLogger(__name__)

PREPARE = "loraplex_prepare"
"""The call that may be answered while a step runs (see `early_reads`)."""


class WorkerReply(enum.StrEnum):
    """Answers of the workers. `loraplex_prepared` may also answer with the text of an error."""

    READING = "reading"
    READY = "ready"
    DONE = "done"
    FILLING = "filling"
    UNKNOWN = "unknown"
    IN_USE = "in use"


class Filling(Protocol):
    """Fills a slot with an adapter from host memory."""

    def begin(self, version_id: int) -> Future[None] | None:
        """Give the adapter a free slot and begin to fill it. Returns None if it is already full."""

    def finish(self, version_id: int) -> None:
        """Make the adapter usable, after the future has its result."""


class AtOnce:
    """Fills slots within the engine's loop, as vLLM does."""

    def __init__(self, manager: Any) -> None:
        """Take vLLM's `LoRAModelManager`."""
        self._manager = manager

    def begin(self, version_id: int) -> None:
        """See `Filling`."""
        self._manager.activate_adapter(version_id)

    def finish(self, version_id: int) -> None:
        """See `Filling`."""


class WorkerAdapters:
    """The adapters of one worker that are being read, are in host memory, or are in slots.

    Its methods are called in the engine's loop, between two steps. `_read` runs in a thread, and
    `prepare` may be called in any (see `early_reads`).
    """

    def __init__(
        self,
        manager: Any,
        read: Callable[[int, str, str], Any],
        clear_slot: Callable[[int], None],
        ids_in_batch: Callable[[], set[int]],
        filling: Filling | None = None,
    ) -> None:
        """Take vLLM's `LoRAModelManager`, and functions for a file, a slot and the batch."""
        self._manager = manager
        self._clear_slot = clear_slot
        self._read = read
        self._ids_in_batch = ids_in_batch
        # There is one thread, because reading several adapters at a time would slow the step more.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="adapter-reader")
        self._reads: dict[int, Future[Any]] = {}
        self._lock = threading.Lock()
        """Held while reads begin and end. See `early_reads`."""
        self._filling = filling or AtOnce(manager)
        self._fills: dict[int, Future[None]] = {}

    def prepare(self, version_id: int, name: str, path: str) -> Future[Any] | None:
        """Begin to read an adapter into host memory, unless it is there or being read.

        Any thread may call this. Returns the read, or None if the adapter is in host memory.
        """
        with self._lock:
            if self._in_host(version_id):
                return None
            read = self._reads.get(version_id)
            if read is None or _failed(read):
                read = self._reader.submit(self._read, version_id, name, path)
                self._reads[version_id] = read
            return read

    def prepared(self, version_id: int) -> str:
        """Return `READING`, `READY`, `UNKNOWN`, or the reason why it cannot be read."""
        with self._lock:
            if (read := self._reads.get(version_id)) is not None:
                if (answer := answer_to_read(read)) != WorkerReply.READY:
                    return answer
                self._manager._registered_adapters[version_id] = read.result()
                del self._reads[version_id]
            return WorkerReply.READY if self._in_host(version_id) else WorkerReply.UNKNOWN

    def install(self, version_id: int, kept_ids: list[int]) -> WorkerReply:
        """Move an adapter from host memory to a free slot, or to the slot of an unused adapter.

        An adapter that loses its slot stays in host memory. The answer `FILLING` says that the slot
        is being filled while steps run: ask again before a request uses the adapter.
        """
        for other in self._fills.keys() - {version_id}:  # perhaps nobody asks about it again
            self._filled(other)
        if self.prepared(version_id) != WorkerReply.READY:
            return WorkerReply.UNKNOWN
        if version_id in self._manager.lora_index_to_id:
            return self._filled(version_id)
        slots = self._manager.lora_index_to_id
        if None not in slots:
            kept = {*kept_ids, *self._ids_in_batch(), *self._fills}
            victim_id = next((holder for holder in slots if holder not in kept), None)
            if victim_id is None:
                return WorkerReply.IN_USE
            self._manager.deactivate_adapter(victim_id)
        if (fill := self._filling.begin(version_id)) is not None:
            self._fills[version_id] = fill
        return self._filled(version_id)

    def _filled(self, version_id: int) -> WorkerReply:
        """Return `DONE` if an adapter's slot can be used, or else why not.

        If filling fails, the adapter loses its slot.
        """
        fill = self._fills.get(version_id)
        if fill is None:
            return WorkerReply.DONE
        if not fill.done():
            return WorkerReply.FILLING
        del self._fills[version_id]
        if (error := fill.exception()) is not None:
            log.error("an adapter's slot could not be filled: %s", error)
            self._manager.deactivate_adapter(version_id)
            return WorkerReply.UNKNOWN
        self._filling.finish(version_id)
        return WorkerReply.DONE

    def evict(self, version_id: int) -> WorkerReply:
        """Free an adapter's slot and host memory. Returns `IN_USE` if that isn't possible yet."""
        if version_id in self._ids_in_batch() or self._filled(version_id) == WorkerReply.FILLING:
            return WorkerReply.IN_USE
        with self._lock:
            read = self._reads.pop(version_id, None)
        if read is not None:
            read.cancel()  # if it already runs, its result is dropped
        if version_id in self._manager.lora_index_to_id:
            self._clear_slot(self._manager.lora_index_to_id.index(version_id))
        self._manager.remove_adapter(version_id)
        return WorkerReply.DONE

    def residency(self) -> dict[str, list[int]]:
        """Return the ids of the adapters in slots, and of those in host memory, slots included."""
        for version_id in list(self._reads):
            self.prepared(version_id)
        slots = [
            version_id
            for version_id in self._manager.lora_index_to_id
            if version_id is not None and self._filled(version_id) == WorkerReply.DONE
        ]
        return {"slots": slots, "host": list(self._manager._registered_adapters)}

    def _in_host(self, version_id: int) -> bool:
        return version_id in self._manager._registered_adapters


class WorkerExtension:
    """A mixin of vLLM's worker class (`--worker-extension-cls`). Its methods are called by name."""

    model_runner: Any

    def loraplex_prepare(self, version_id: int, name: str, path: str) -> str:
        """See `WorkerAdapters.prepare` and `WorkerAdapters.prepared`."""
        self._loraplex.prepare(version_id, name, path)
        return str(self._loraplex.prepared(version_id))

    def loraplex_prepared(self, version_id: int) -> str:
        """See `WorkerAdapters.prepared`."""
        return str(self._loraplex.prepared(version_id))

    def loraplex_install(self, version_id: int, kept_ids: list[int]) -> str:
        """See `WorkerAdapters.install`."""
        return str(self._loraplex.install(version_id, kept_ids))

    def loraplex_evict(self, version_id: int) -> str:
        """See `WorkerAdapters.evict`."""
        return str(self._loraplex.evict(version_id))

    def loraplex_residency(self) -> dict[str, list[int]]:
        """See `WorkerAdapters.residency`. The engine of a dedicated server has no adapters."""
        if getattr(self.model_runner, "lora_manager", None) is None:
            return {"slots": [], "host": []}
        return self._loraplex.residency()

    @cached_property
    def _loraplex(self) -> WorkerAdapters:
        from server.engine.worker.reader import AdapterReader
        from server.engine.worker.slots import clear_slot

        manager = self.model_runner.lora_manager
        filling = _stream_filling(manager._adapter_manager) if gpu_lora_streams() else None
        return WorkerAdapters(
            manager._adapter_manager,
            AdapterReader(manager, filling).read,
            partial(clear_slot, manager._adapter_manager),
            partial(_ids_in_batch, self.model_runner),
            filling,
        )


def _stream_filling(manager: Any) -> SlotFilling | None:
    """Return the object that fills slots on a GPU while steps run, or None if it can't be used."""
    followed = getattr(manager, "loraplex_layers", None)
    if followed is None or not followed.layers:  # not CUDA, or vLLM's operators
        return None
    from server.engine.worker.lora_gpu.filling import SlotFilling
    from server.engine.worker.lora_gpu.operators import operators
    from server.engine.worker.lora_gpu.transfer import CudaLane

    if operators().fallback is not None:
        return None
    filling = SlotFilling(manager, followed, CudaLane(manager.device))
    if not filling.works():
        log.warning("adapters are loaded within the step: filling slots beside it failed its check")
        return None
    manager.loraplex_fill_now = filling.fill_now
    return filling


def _ids_in_batch(runner: Any) -> set[int]:
    """Return the adapters of requests in the last step that are not known to have ended."""
    if (state := getattr(runner, "lora_state", None)) is not None:  # vLLM's second model runner
        return {request.lora_int_id for request in state.lora_requests.values()}
    return set(runner.input_batch.lora_id_to_lora_request)


def answer_to_read(read: Future[Any]) -> str:
    """Return `READING`, `READY`, `UNKNOWN` for a read that was given up, or why it failed."""
    if not read.done():
        return WorkerReply.READING
    if read.cancelled():
        return WorkerReply.UNKNOWN
    error = read.exception()
    return WorkerReply.READY if error is None else str(error) or repr(error)


def _failed(read: Future[Any]) -> bool:
    return read.done() and answer_to_read(read) != WorkerReply.READY
