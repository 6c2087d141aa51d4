"""Has clients that keep connections leave a server that is about to end.

Services and routers send no new connections to a server that stops. But a connection that is kept
goes on, and its next request would come when the server refuses requests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.lifecycle import Lifecycle

CLOSE = (b"connection", b"close")


class Departing:
    """ASGI application that ends connections with their next answer while the server leaves."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self._app, self._lifecycle = app, lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # No coroutine of its own: a streamed answer has a message for each token.
        def last(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start" and self._lifecycle.leaving:
                message = {**message, "headers": [*message["headers"], CLOSE]}
            return send(message)

        await self._app(scope, receive, last)


def close_kept(connections: Iterable[Any]) -> None:
    """Close the connections whose last request was answered. A client then makes a new one.

    A connection is one of uvicorn's protocols. If a request is on its way to it, this server would
    refuse it anyway.
    """
    for connection in connections:
        if connection.cycle is not None and connection.cycle.response_complete:
            connection.transport.close()
