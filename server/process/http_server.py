"""uvicorn, as this server runs it: the process handles signals, and slow clients are bounded.

uvicorn bounds how long a connection may be idle between two requests, but not how long the headers
of a request may take. So one client could occupy all connections with some thousand sockets that
send a byte from time to time ("slowloris"). `body_limit` bounds how slowly a body may arrive.
uvicorn also does not bound how long a client may read nothing of its answer, which stays in memory.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import uvicorn

from server.process.departing import close_kept

FORCED_CLOSE_SECONDS = 2
KEEP_ALIVE_SECONDS = 75
"""Longer than proxies keep idle connections to us (mostly 60 s). If we closed a connection first, a
request that is just being sent would fail or be repeated."""
HEADER_SECONDS = 20.0
"""How long a connection may take to send a request's headers. The time counts from the start of the
connection or, after an answer, from the moment at which uvicorn would have closed it as idle."""
TICKS_A_LOOK = 10
"""uvicorn ticks ten times a second."""


def http_config(app: Any, *, is_debug: bool = False, **more: Any) -> uvicorn.Config:
    """Return uvicorn's configuration for an ASGI app; `more` are further options of uvicorn's."""
    return uvicorn.Config(
        app,
        log_level="info" if is_debug else "warning",
        access_log=is_debug,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=FORCED_CLOSE_SECONDS,
        ws="none",
        # Otherwise a pipelined request would run in the context of the previous one, as its tenant.
        reset_contextvars=True,
        **more,
    )


class HttpServer(uvicorn.Server):
    """uvicorn that closes connections whose request headers never arrive, or whose answers are not
    read. It installs no signal handlers, because uvicorn's would cut off running streams.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        write_stall_seconds: float,
        header_seconds: float = HEADER_SECONDS,
        is_draining: Callable[[], bool] = bool,
    ) -> None:
        """Serve as `config` says.

        `write_stall_seconds` is how long a client may read nothing of an answer. `header_seconds`
        is how long it may take to send a request's headers. While `is_draining`, connections are
        closed that are kept for a next request.
        """
        super().__init__(config)
        self._is_draining = is_draining
        self._waiting = WaitingConnections(config.timeout_keep_alive, header_seconds)
        self._stalled = StalledWrites(write_stall_seconds)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        if self._is_draining():
            close_kept(list(self.server_state.connections))
        if counter % TICKS_A_LOOK == 0:
            connections, now = self.server_state.connections, time.monotonic()
            for connection in self._waiting.overdue(connections, now):
                connection.transport.close()
            for connection in self._stalled.overdue(connections, now):
                connection.transport.abort()  # `close` would wait until the client has read all
        return await super().on_tick(counter)


class WaitingConnections:
    """Knows since when each connection has had no request to answer."""

    def __init__(self, idle_seconds: float, header_seconds: float = HEADER_SECONDS) -> None:
        """`idle_seconds`: how long a connection may stay without a request after an answer;
        `header_seconds`: how long a request's headers may take.

        uvicorn closes idle connections itself, but not those that have sent a byte since.
        """
        self._idle_seconds, self._header_seconds = idle_seconds, header_seconds
        self._since: WeakKeyDictionary[Any, tuple[Any, float]] = WeakKeyDictionary()

    def overdue(self, connections: Iterable[Any], now: float) -> list[Any]:
        """Return the connections whose next request's headers are overdue at `now`.

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
            elif now - since > self._header_seconds + (self._idle_seconds if last else 0):
                late.append(connection)
        return late


class StalledWrites:
    """Knows since when each client has read nothing of what waits to be sent to it."""

    def __init__(self, stall_seconds: float) -> None:
        self._stall_seconds = stall_seconds
        self._since: WeakKeyDictionary[Any, tuple[int, float]] = WeakKeyDictionary()

    def overdue(self, connections: Iterable[Any], now: float) -> list[Any]:
        """Return the connections whose unsent bytes have not decreased for too long, at `now`.

        An increase does not mean that the client reads: the server writes until the buffer is full.
        """
        stalled = []
        for connection in connections:
            num_unsent = connection.transport.get_write_buffer_size()
            least, since = self._since.get(connection, (0, now))
            if num_unsent == 0 or num_unsent < least or least == 0:
                self._since[connection] = num_unsent, now
            elif now - since > self._stall_seconds:
                stalled.append(connection)
            else:
                self._since[connection] = num_unsent, since
        return stalled
