"""Sends one streamed request over HTTP, times it, and names what goes wrong."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from loadtest.drive.connection import Connection
from loadtest.outcome.request_outcome import HUNG_UP, UNFINISHED, Outcome
from loadtest.outcome.streams import Events, Reading, StreamBroken
from loadtest.plan.scenario import Limits

CONNECT_SECONDS = 10
MAX_ERROR_BYTES = 2000
KEEPALIVE_SECONDS = 4
"""A connection isn't used again after this: servers close idle ones, mostly after five seconds."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request, ready to be sent."""

    path: str
    body: dict[str, Any]
    data: bytes
    """The body as it is sent."""
    key: str = ""
    hang_up_after: int | None = None
    """After how many tokens the client disconnects."""
    wants_all_tokens: bool = False
    """Whether fewer tokens than asked are an error."""


def make_call(path: str, body: dict[str, Any], key: str, **changes: Any) -> Call:
    """Return a call with its body encoded, which takes a while: do it before the call is due."""
    return Call(path, body, json.dumps(body).encode(), key, **changes)


class RequestSender:
    """Sends requests to one server."""

    def __init__(self, url: str, limits: Limits) -> None:
        """Connect on first use. The clock starts now."""
        parts = urlsplit(url)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host, self._port = parts.hostname or "", parts.port or (443 if self._tls else 80)
        self._prefix, self._netloc = parts.path.rstrip("/"), parts.netloc.rpartition("@")[2]
        self._limits = limits
        self._idle: list[Connection] = []
        self.start_clock()

    async def __aenter__(self) -> RequestSender:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for connection in self._idle:
            connection.close()

    def start_clock(self) -> None:
        """Count times from now on."""
        self._start = time.perf_counter()

    def now(self) -> float:
        """Return the seconds since the clock was started."""
        return time.perf_counter() - self._start

    async def send(self, call: Call, outcome: Outcome) -> None:
        """Send a request, and fill in its outcome. Raises nothing unless it is cancelled."""
        answer = _Answer(call, outcome, self.now)
        try:
            await self._ask(self._request(call), answer)
        except asyncio.CancelledError:
            outcome.status, outcome.detail = UNFINISHED, "the run was over"
            raise
        except StreamBroken as error:
            outcome.status, outcome.detail = error.status, str(error)
        finally:
            outcome.done = self.now()
            _note(outcome, answer.reading)

    async def _ask(self, request: bytes, answer: _Answer) -> None:
        connection = self._idle_connection()
        if connection:
            try:
                await connection.ask(request, answer, self._limits)
            except StreamBroken as error:
                if error.status != "reset" or connection.has_heard:
                    raise
                # The server closed it after the last answer, and has not seen this request.
                connection = None
        if connection is None:
            connection = await self._connect()
            await connection.ask(request, answer, self._limits)
        if connection.is_open:
            self._idle.append(connection)

    def _idle_connection(self) -> Connection | None:
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and now - connection.idle_since < KEEPALIVE_SECONDS:
                return connection
            connection.close()
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                made = loop.create_connection(Connection, self._host, self._port, ssl=self._tls)
                return (await made)[1]
        except (OSError, TimeoutError) as error:
            raise StreamBroken("connect", str(error) or "no connection in time") from error

    def _request(self, call: Call) -> bytes:
        key = f"Authorization: Bearer {call.key}\r\n" if call.key else ""
        head = (
            f"POST {self._prefix}{call.path} HTTP/1.1\r\nHost: {self._netloc}\r\n{key}"
            "Content-Type: application/json\r\nAccept-Encoding: identity\r\n"
            f"Content-Length: {len(call.data)}\r\n\r\n"
        )
        return head.encode() + call.data


class _Answer:
    """Reads the answer to a call into its outcome."""

    def __init__(self, call: Call, outcome: Outcome, now: Callable[[], float]) -> None:
        self.reading = Reading()
        self._call, self._outcome, self._now = call, outcome, now
        self._events, self._last = Events(), 0.0
        self._refusal: tuple[int, bytes] | None = None

    def begin(self, status: int, headers: dict[str, str]) -> None:
        """Note which version answers. The text of a refusal comes later."""
        if status != 200:
            self._refusal = status, b""
            return
        kind = headers.get("content-type", "")
        if kind.partition(";")[0].strip() != "text/event-stream":
            raise StreamBroken("garbage", f"content type {kind}")
        self._outcome.answered = self._now()
        self._outcome.tier = headers.get("x-adapter-tier", "")
        if "x-adapter-version" in headers:
            self._outcome.version = f"{headers.get('x-adapter-id')}@{headers['x-adapter-version']}"

    def take(self, data: bytes) -> bool:
        """Time the tokens. Returns True where the client disconnects as planned."""
        if self._refusal is not None:
            status, text = self._refusal
            self._refusal = status, text + data[: MAX_ERROR_BYTES - len(text)]
            return False
        outcome, now = self._outcome, self._now()
        for event in self._events.feed(data):
            if not self.reading.take(event):
                continue
            num_new = len(self.reading.token_ids) - len(outcome.token_times)
            outcome.token_times += [now] * num_new
            if outcome.first is None:
                outcome.first = now
            else:
                outcome.gaps.append(now - self._last)
            self._last = now
            if self._call.hang_up_after and len(outcome.gaps) + 1 >= self._call.hang_up_after:
                outcome.status = HUNG_UP
                return True
        return False

    def end(self) -> None:
        """Check that the answer is whole."""
        if self._refusal is not None:
            status, text = self._refusal
            raise StreamBroken(f"http_{status}", text.decode(errors="replace"))
        reading, call = self.reading, self._call
        if self._events.rest.strip() or not (reading.done or reading.finished):
            raise StreamBroken("truncated", "the stream ended before the answer did")
        got, asked = reading.tokens_out, call.body["max_tokens"]
        if call.wants_all_tokens and got is not None and got < asked:
            raise StreamBroken("short", f"{asked} tokens asked, {got} generated")


def _note(outcome: Outcome, reading: Reading) -> None:
    """Copy what the stream said, as far as it came."""
    num_events = len(outcome.gaps) + (outcome.first is not None)
    outcome.tokens_in = reading.tokens_in or 0
    outcome.tokens_out = num_events if reading.tokens_out is None else reading.tokens_out
    outcome.text = "".join(reading.text)
    outcome.tokens = reading.tokens
    outcome.token_ids = reading.token_ids
    outcome.is_mixed = reading.is_mixed
    if reading.model is not None:
        outcome.is_mixed |= bool(outcome.version) and reading.model != outcome.version
        outcome.version = outcome.version or reading.model
