"""uvicorn, as this server runs it: the process handles signals, and slow clients are bounded.

uvicorn bounds how long a connection may be idle between two requests, but not how long the headers
of one may take to come: with some thousand sockets that send a byte now and then ("slowloris") one
client could take all that there are. How slowly a body may come is `body_limit`'s.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import uvicorn

HEADER_SECONDS = 20.0
"""How long a connection may take to send a request's headers: from its start, or from when uvicorn
would have closed it for being idle after an answer."""
TICKS_A_LOOK = 10
"""uvicorn ticks ten times a second."""


class HttpServer(uvicorn.Server):
    """uvicorn that closes connections which don't come to ask, and leaves signals to others.

    Its own signal handlers would end the engine's clients mid-stream.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._waiting = WaitingConnections(config.timeout_keep_alive)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS_A_LOOK == 0:
            for connection in self._waiting.overdue(
                self.server_state.connections, time.monotonic()
            ):
                connection.transport.close()
        return await super().on_tick(counter)


class WaitingConnections:
    """Since when connections have had no request to be answered."""

    def __init__(self, idle_seconds: float) -> None:
        """`idle_seconds`: how long one may stay without a request after an answer.

        uvicorn sees to that itself, but no longer once a byte has come.
        """
        self._idle_seconds = idle_seconds
        self._since: WeakKeyDictionary[Any, tuple[Any, float]] = WeakKeyDictionary()

    def overdue(self, connections: Iterable[Any], now: float) -> list[Any]:
        """Those of which the next request's headers have not come for too long, at `now`.

        A connection is one of uvicorn's protocols: its `cycle` is the last request whose headers
        were complete, None before the first.
        """
        late = []
        for connection in connections:
            last = connection.cycle
            if last is not None and not last.response_complete:
                continue
            seen, since = self._since.get(connection, (None, now))
            if connection not in self._since or seen is not last:
                self._since[connection] = last, now
            elif now - since > HEADER_SECONDS + (self._idle_seconds if last else 0):
                late.append(connection)
        return late
