"""A connection that carries one streamed answer at a time, read as its bytes arrive.

It is asyncio's protocol with httptools' parser (llhttp, as in Node.js). A request takes less than
half of the processor time that it took with aiohttp, and times are taken where the bytes come in.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

import httptools

from loadtest.outcome.streams import StreamBroken
from loadtest.plan.scenario import Limits


class Sink(Protocol):
    """Takes an answer in. A method that raises StreamBroken ends the answer."""

    def begin(self, status: int, headers: dict[str, str]) -> None:
        """Take the status and the headers, whose names are in lower case."""

    def take(self, data: bytes) -> bool:
        """Take a part of the body. Returns True to disconnect."""

    def end(self) -> None:
        """Take note that the body is complete."""


class Connection(asyncio.Protocol):
    """One connection to a server, for one request at a time."""

    def __init__(self) -> None:
        """Make a protocol that `create_connection` connects."""
        self.is_open = False
        """Whether another request may be sent."""
        self.idle_since = 0.0
        self.has_heard = False
        """Whether a byte of the answer to the last request has come."""
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._is_complete = self._has_begun = False

    async def ask(self, request: bytes, sink: Sink, limits: Limits) -> None:
        """Send a request, and pass the answer to `sink`.

        Raises:
            StreamBroken: the answer stalls, takes too long, is cut off, or isn't HTTP.
        """
        self._sink, self._limits = sink, limits
        self._ended = self._loop.create_future()
        self._headers, self._body = {}, []
        self._is_complete = self._has_begun = self.is_open = self.has_heard = False
        self._parser = httptools.HttpResponseParser(self)
        self._began = self._heard = self._loop.time()
        self._watch()
        self._transport.write(request)
        try:
            await self._ended
        finally:
            self._timer.cancel()
            if self.is_open:
                self.idle_since = self._loop.time()
            else:
                self._transport.abort()

    def close(self) -> None:
        """Close the connection at once."""
        self.is_open = False
        self._transport.abort()

    def _watch(self) -> None:
        """Fail an answer that stalled or took too long. One timer serves all of its chunks."""
        stall = self._heard + self._limits.stall_seconds
        timeout = self._began + self._limits.request_seconds
        now = self._loop.time()
        if now >= timeout:
            self._fail(StreamBroken("timeout", f"no end within {self._limits.request_seconds} s"))
        elif now >= stall:
            self._fail(StreamBroken("stall", f"no byte for {self._limits.stall_seconds} s"))
        else:
            self._timer = self._loop.call_at(min(stall, timeout), self._watch)

    def _fail(self, error: Exception) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)

    def _finish(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    # asyncio calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note that a request may be sent."""
        self._transport = cast(asyncio.WriteTransport, transport)
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        """Parse the bytes, and pass the body on."""
        if self.is_open or self._ended.done():  # no request is open
            self.close()
            return
        self._heard, self.has_heard = self._loop.time(), True
        try:
            self._parser.feed_data(data)
            if self._body:
                body, self._body = b"".join(self._body), []
                if self._sink.take(body):
                    self._finish()
                    return
            if self._is_complete:
                self._sink.end()
                self.is_open = self._is_reusable
                self._finish()
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            cause = error.__context__ if isinstance(error.__context__, StreamBroken) else None
            self._fail(cause or StreamBroken("garbage", f"not HTTP: {error}"))
        except StreamBroken as error:
            self._fail(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the answer. It is whole if it gave neither a length nor chunked encoding."""
        self.is_open = False
        if self._ended.done():
            return
        if exc or not self._has_begun or self._headers.keys() & _DELIMITED:
            self._fail(StreamBroken("reset", str(exc or "the server closed the connection")))
            return
        try:
            self._sink.end()
        except StreamBroken as error:
            self._fail(error)
        self._finish()

    # httptools calls these.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Pass the status and the headers on. A 1xx status isn't an answer yet."""
        if self._parser.get_status_code() >= 200:
            self._has_begun = True
            self._sink.begin(self._parser.get_status_code(), self._headers)

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body until the parser is done with these bytes."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Note that the answer is complete, if it has begun."""
        self._is_complete = self._has_begun
        self._is_reusable = self._parser.should_keep_alive()


_DELIMITED = {"content-length", "transfer-encoding"}
