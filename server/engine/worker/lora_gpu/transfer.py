# mypy: disable-error-code="no-untyped-call"
"""Fills slots while steps run, from host memory through a small pinned buffer.

A thread copies an adapter chunk by chunk into pinned memory, and from there to the GPU on a stream
of its own, where a kernel puts each chunk's matrices into the slot. The engine's loop starts this
and asks later whether it is done: it neither waits nor copies. A request may use the slot only
after that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from server.engine.worker.lora_gpu import kernels
from server.engine.worker.lora_gpu.image import CHUNK_BYTES, SEGMENT_FIELDS, AdapterImage, Chunk

BLOCK = 2048
NUM_BUFFERS = 2
_TYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Types by their numbers in `lora_cpu.files`."""


class GpuEvent(Protocol):
    """A point on a stream."""

    def record(self) -> None:
        """Mark the present end of the stream."""

    def synchronize(self) -> None:
        """Wait until the stream has reached this point. Python's lock is released meanwhile."""


class Lane(Protocol):
    """The stream that slots are filled on."""

    pinned: bool
    device: torch.device

    def mark(self) -> Any:
        """Mark the current end of the engine's own stream."""

    def after(self, mark: Any) -> contextlib.AbstractContextManager[None]:
        """Return a context in which work goes to this stream, and runs after the mark."""

    def event(self) -> GpuEvent:
        """Make an event of this stream."""


class CudaLane:
    """A stream of its own on the GPU."""

    pinned = True

    def __init__(self, device: torch.device) -> None:
        """Make the stream."""
        self.device = device
        self._stream = torch.cuda.Stream(device)

    def mark(self) -> torch.cuda.Event:
        """See `Lane`."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    @contextlib.contextmanager
    def after(self, mark: torch.cuda.Event) -> Any:
        """See `Lane`."""
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            self._stream.wait_event(mark)
            yield

    def event(self) -> GpuEvent:
        """See `Lane`. Waiting for it sleeps, because a spinning thread would take a processor."""
        event: GpuEvent = torch.cuda.Event(blocking=True)
        return event


class HostLane:
    """Runs everything at once on the CPU, for tests on a machine that has no GPU."""

    pinned = False
    device = torch.device("cpu")

    def mark(self) -> None:
        """See `Lane`."""

    def after(self, mark: None) -> contextlib.AbstractContextManager[None]:
        """See `Lane`."""
        return contextlib.nullcontext()

    def event(self) -> GpuEvent:
        """See `Lane`."""
        return _Nothing()


class _Nothing:
    def record(self) -> None:
        """Nothing is pending."""

    def synchronize(self) -> None:
        """Nothing is pending."""


@dataclass
class _Buffer:
    """Memory for a chunk on host and GPU. `free` marks when the host's part has been copied."""

    host: torch.Tensor
    device: torch.Tensor
    free: GpuEvent


class SlotTransfer:
    """Fills slots, one adapter after the other."""

    def __init__(self, base: torch.Tensor, lane: Lane, chunk_bytes: int = CHUNK_BYTES) -> None:
        """Make the buffers. `base` is the stack that the segments' positions count from."""
        self._base = base
        self._lane = lane
        self._buffers: list[_Buffer] = []
        self._grow(chunk_bytes)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="slot-transfer")

    def begin(
        self, image: AdapterImage, slot: int, wanted: Callable[[], bool] = lambda: True
    ) -> Future[None]:
        """Begin to fill a slot. No later step may use it before the future has its result."""
        return self._thread.submit(self._fill, image, slot, self._lane.mark(), wanted)

    def _fill(self, image: AdapterImage, slot: int, mark: Any, wanted: Callable[[], bool]) -> None:
        numbers = torch.from_numpy(image.numbers)
        with self._lane.after(mark):
            for i, chunk in enumerate(image.chunks):
                if not wanted():
                    break
                self._send(chunk, numbers, _TYPES[image.type], slot, i % NUM_BUFFERS)
            done = self._lane.event()
            done.record()
        done.synchronize()

    def _send(
        self, chunk: Chunk, numbers: torch.Tensor, dtype: torch.dtype, slot: int, place: int
    ) -> None:
        """Copy a chunk's segments, their scales and its numbers in one piece, then scatter them."""
        parts = [
            torch.from_numpy(chunk.segments).view(torch.uint8).flatten(),
            torch.from_numpy(chunk.scales).view(torch.uint8),
            numbers[chunk.begin : chunk.end],
        ]
        starts = _starts(parts)
        if starts[-1] > len(self._buffers[place].host):
            self._grow(starts[-1])
        buffer = self._buffers[place]
        buffer.free.synchronize()  # until the last chunk in it has been copied
        for start, part in zip(starts, parts, strict=False):
            buffer.host[start : start + len(part)].copy_(part)
        sent = buffer.device[: starts[-1]]
        sent.copy_(buffer.host[: starts[-1]], non_blocking=True)
        buffer.free.record()
        segments, scales, source = (
            sent[start : start + len(part)] for start, part in zip(starts, parts, strict=False)
        )
        largest = int((chunk.segments[:, 3] * chunk.segments[:, 4]).max())
        kernels.scatter[(len(chunk.segments), -(-largest // BLOCK))](
            source.view(dtype),
            self._base,
            segments.view(torch.int64).view(-1, SEGMENT_FIELDS),
            scales.view(torch.float32),
            slot,
            BLOCK=BLOCK,
        )

    def _grow(self, num_bytes: int) -> None:
        """Replace the buffers by larger ones, for a matrix that is larger than a chunk."""
        if self._buffers:  # a kernel may still read from them
            done = self._lane.event()
            done.record()
            done.synchronize()
        self._buffers = [
            _Buffer(
                torch.empty(
                    num_bytes, dtype=torch.uint8, device="cpu", pin_memory=self._lane.pinned
                ),
                torch.empty(num_bytes, dtype=torch.uint8, device=self._lane.device),
                self._lane.event(),
            )
            for _ in range(NUM_BUFFERS)
        ]


def _starts(parts: Sequence[torch.Tensor]) -> list[int]:
    """Return where each part begins, at a multiple of 16 bytes, and then where the last ends."""
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + -(-len(part) // 16) * 16)
    return starts
