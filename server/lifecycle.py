"""What the process is doing: preparing, serving, or draining towards its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Lifecycle:
    """Counts running inference requests, so that the end can wait for them."""

    def __init__(self, *, prepared: bool = True) -> None:
        self.prepared = prepared
        """False until everything that must precede the first request is done."""
        self.leaving = False
        """True when routers should choose another server, although this one still answers."""
        self.draining = False
        self._running: set[object] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def running(self) -> Iterator[Callable[[], None]]:
        """Count one inference request until the yielded function is called, or the context ends.

        The function is called when the engine's work is over, so that a client which reads slowly
        does not delay the end of the process.
        """
        request = object()
        self._running.add(request)
        self._idle.clear()

        def end() -> None:
            self._running.discard(request)
            if not self._running:
                self._idle.set()

        try:
            yield end
        finally:
            end()

    async def drain(self, seconds: float, notice_seconds: float = 0) -> bool:
        """Refuse new requests and wait for the running ones. Returns False if some did not end.

        New requests are still answered for `notice_seconds`, while `leaving` is set, so that
        routers take note first. A router that balances load would otherwise prefer the server
        that refuses, as the one with the least to do.
        """
        self.leaving = True
        if notice_seconds:
            await asyncio.sleep(notice_seconds)
        self.draining = True
        if self._idle.is_set():
            return True
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True
