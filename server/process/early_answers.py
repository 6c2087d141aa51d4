"""Answers HTTP while the server still imports its libraries.

A process of its own does so: an import may keep Python's lock for longer than a probe waits. It
shares the listening sockets, so no connection is refused when the server itself takes over.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
from collections.abc import Sequence
from types import TracebackType

from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from server.errors import NotServing, error_response
from server.middleware.request_id import RequestId
from server.middleware.security_headers import SecurityHeaders
from server.process.http_server import HttpServer, http_config

MESSAGE = "the server is starting; try again in a moment"
STALL_SECONDS = 5.0


class EarlyAnswers:
    """Answers on listening sockets within this context, or until `hand_over`.

    `/livez` gets 200, everything else 503 with `Retry-After`.
    """

    def __init__(self, listeners: Sequence[socket.socket]) -> None:
        """Take the sockets. Nothing answers yet."""
        self._listeners = listeners
        self._open: int | None = None
        """The end of a pipe. When it is closed, the other process stops to answer."""

    def __enter__(self) -> EarlyAnswers:
        until, writer = os.pipe()
        self._open = writer
        self._process = multiprocessing.get_context("fork").Process(
            target=_answer, args=(self._listeners, until, writer), daemon=True
        )
        self._process.start()
        os.close(until)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.hand_over()

    def hand_over(self) -> None:
        """Stop to answer. Connections that arrive now wait for who accepts next. May be repeated.

        If this process ends without it, the other one ends, too.
        """
        if self._open is not None:
            os.close(self._open)
            self._open = None
            self._process.join()


def _answer(listeners: Sequence[socket.socket], until: int, writer: int) -> None:
    """Answer until the pipe `until` has no writer left."""
    os.close(writer)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the server decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    asyncio.run(_serve(listeners, until))


async def _serve(listeners: Sequence[socket.socket], until: int) -> None:
    app = SecurityHeaders(RequestId(early_app))
    servers = [HttpServer(http_config(app, lifespan="off"), STALL_SECONDS) for _ in listeners]

    def stop() -> None:
        asyncio.get_running_loop().remove_reader(until)
        for server in servers:
            server.should_exit = True

    asyncio.get_running_loop().add_reader(until, stop)
    pairs = zip(servers, listeners, strict=True)
    await asyncio.gather(*(server.serve(sockets=[listener]) for server, listener in pairs))


async def early_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request (ASGI). Each connection is closed, since another process takes over."""
    path = scope["path"]
    if path == "/livez" and scope["method"] in ("GET", "HEAD"):
        response: Response = PlainTextResponse("ok\n")
    else:
        response = error_response(NotServing(MESSAGE), path)
    response.headers["connection"] = "close"
    await response(scope, receive, send)
