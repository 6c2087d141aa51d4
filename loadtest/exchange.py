"""One streamed request over HTTP, timed, and what went wrong with it named.

aiohttp on uvloop: sends 2,000 requests/s from one core, where httpx manages a few hundred.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import aiohttp

from loadtest.outcome import HUNG_UP, UNFINISHED, Outcome
from loadtest.scenario import Limits
from loadtest.streams import Events, Reading, StreamBroken

CONNECT_SECONDS = 10
MAX_ERROR_BYTES = 2000
KEEPALIVE_SECONDS = 4
"""Less than servers' usual five, so that none closes a connection that is being used again."""


@dataclass(frozen=True, slots=True)
class Call:
    """What is sent."""

    path: str
    body: dict[str, Any]
    data: bytes
    """The body as it is sent."""
    key: str = ""
    hang_up_after: int | None = None
    """Disconnect after so many tokens."""
    wants_all_tokens: bool = False
    """Fewer tokens than asked are an error."""


def make_call(path: str, body: dict[str, Any], key: str, **changes: Any) -> Call:
    """A call, its body written out: that takes a while and is better done before it is due."""
    return Call(path, body, json.dumps(body).encode(), key, **changes)


class Exchange:
    """Sends requests to one server."""

    def __init__(self, url: str, limits: Limits) -> None:
        """Connect on first use; the clock starts now."""
        self._url = url.rstrip("/")
        self.start_clock()
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS),
            timeout=aiohttp.ClientTimeout(
                total=limits.request_seconds,
                sock_connect=CONNECT_SECONDS,
                sock_read=limits.stall_seconds,
            ),
            headers={"Content-Type": "application/json", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def __aenter__(self) -> Exchange:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.close()

    def start_clock(self) -> None:
        """Times count from now on."""
        self._start = time.perf_counter()

    def now(self) -> float:
        """Seconds since the clock was started."""
        return time.perf_counter() - self._start

    async def get(self, path: str) -> bytes:
        """The body of an open page.

        Raises:
            aiohttp.ClientError, TimeoutError: there is none.
        """
        async with self._http.get(self._url + path, raise_for_status=True) as response:
            return await response.read()

    async def send(self, call: Call, outcome: Outcome) -> None:
        """Send a request and fill in its outcome; raises only when cancelled."""
        reading = Reading()
        headers = {"Authorization": f"Bearer {call.key}"} if call.key else {}
        try:
            async with self._http.post(
                self._url + call.path, data=call.data, headers=headers
            ) as response:
                await self._read(response, call, outcome, reading)
        except asyncio.CancelledError:
            outcome.status, outcome.detail = UNFINISHED, "the run was over"
            raise
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            outcome.status, outcome.detail = kind_of(error), str(error) or type(error).__name__
        except StreamBroken as error:
            outcome.status, outcome.detail = error.status, str(error)
        finally:
            outcome.done = self.now()
            _note(outcome, reading)

    async def _read(
        self, response: aiohttp.ClientResponse, call: Call, outcome: Outcome, reading: Reading
    ) -> None:
        if response.status != 200:
            text = (await response.content.read(MAX_ERROR_BYTES)).decode(errors="replace")
            raise StreamBroken(f"http_{response.status}", text)
        if response.content_type != "text/event-stream":
            raise StreamBroken("garbage", f"content type {response.content_type}")
        _note_headers(outcome, response)
        events, last = Events(), 0.0
        while data := await response.content.readany():
            now = self.now()
            for event in events.feed(data):
                if not reading.take(event):
                    continue
                if outcome.first is None:
                    outcome.first = now
                else:
                    outcome.gaps.append(now - last)
                last = now
                if call.hang_up_after and len(outcome.gaps) + 1 >= call.hang_up_after:
                    outcome.status = HUNG_UP
                    response.close()
                    return
        _check_whole(reading, events, call)


def kind_of(error: Exception) -> str:
    """The kind of error that an exception of the transport is."""
    if isinstance(error, aiohttp.ConnectionTimeoutError | aiohttp.ClientConnectorError):
        return "connect"
    if isinstance(error, aiohttp.SocketTimeoutError):
        return "stall"
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, aiohttp.ServerConnectionError | aiohttp.ClientPayloadError | OSError):
        return "reset"
    return "garbage"


def _check_whole(reading: Reading, events: Events, call: Call) -> None:
    if events.rest.strip() or not (reading.done or reading.finished):
        raise StreamBroken("truncated", "the stream ended before the answer did")
    got, asked = reading.tokens_out, call.body["max_tokens"]
    if call.wants_all_tokens and got is not None and got < asked:
        raise StreamBroken("short", f"{asked} tokens asked, {got} generated")


def _note_headers(outcome: Outcome, response: aiohttp.ClientResponse) -> None:
    outcome.tier = response.headers.get("x-adapter-tier", "")
    version = response.headers.get("x-adapter-version")
    if version is not None:
        outcome.version = f"{response.headers.get('x-adapter-id')}@{version}"


def _note(outcome: Outcome, reading: Reading) -> None:
    """What the stream said, as far as it came."""
    num_events = len(outcome.gaps) + (outcome.first is not None)
    outcome.tokens_in = reading.tokens_in or 0
    outcome.tokens_out = num_events if reading.tokens_out is None else reading.tokens_out
    outcome.text = "".join(reading.text)
    outcome.tokens = reading.tokens
    outcome.is_mixed = reading.is_mixed
    if reading.model is not None:
        outcome.is_mixed |= bool(outcome.version) and reading.model != outcome.version
        outcome.version = outcome.version or reading.model
