"""How the process ends: the signals that ask for it, and the drain that follows."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

from server.engine.running.children import kill_child_processes
from server.lifecycle import Lifecycle
from server.settings import Settings

log = logging.getLogger(__name__)


_ENDING = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def ending_at_once() -> Iterator[ExitStack]:
    """Let a signal end the process at once, with exit code 0, until `EndSignals.watch`.

    Nothing is running yet that would have to be drained. Without this, a container's first process
    would ignore SIGTERM. The callbacks of the context's stack are called at the end, also after a
    signal.
    """
    at_end = ExitStack()

    def end(_number: int, _frame: FrameType | None) -> None:
        kill_child_processes()
        at_end.close()
        os._exit(0)

    before = {number: signal.signal(number, end) for number in _ENDING}
    try:
        with at_end:
            yield at_end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class EndSignals(asyncio.Event):
    """An event that SIGTERM and SIGINT set."""

    last: int | None = None
    """The number of the last signal that arrived."""

    @classmethod
    def watch(cls) -> EndSignals:
        """Return an event that the running loop sets from now on."""
        signals = cls()
        loop = asyncio.get_running_loop()
        for number in _ENDING:
            loop.add_signal_handler(number, signals._receive, number)
        return signals

    def _receive(self, number: int) -> None:
        self.last = number
        self.set()


async def drain(lifecycle: Lifecycle, settings: Settings, signals: EndSignals) -> None:
    """Wait for the open streams to finish. A second signal ends the waiting.

    After SIGTERM, routers first get some time to notice. After Ctrl-C they do not, because a person
    waits.
    """
    seconds = settings.drain_seconds
    notice_seconds = settings.notice_seconds if signals.last == signal.SIGTERM else 0
    log.info(
        "shutting down: new requests are refused after %g s, open ones then have %g s",
        notice_seconds,
        seconds,
    )
    signals.clear()
    drained = asyncio.create_task(lifecycle.drain(seconds, notice_seconds))
    again = asyncio.create_task(signals.wait())
    await asyncio.wait({drained, again}, return_when=asyncio.FIRST_COMPLETED)
    if not (drained.done() and drained.result()):
        log.warning("some requests were cut off")
    drained.cancel()
    again.cancel()
