"""Clients that send a request slowly, on real sockets, before both of uvicorn's parsers."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from server.auth import Keys
from server.lifecycle import Lifecycle
from server.middleware.body_limit import BodyLimit
from server.process.departing import Departing
from server.process.http_server import (
    HEADER_SECONDS,
    KEEP_ALIVE_SECONDS,
    HttpServer,
    StalledWrites,
    WaitingConnections,
    http_config,
)
from server.tenancy.meter import Meter, current_meter
from tests.server.answers import CHAT
from tests.server.fake_engine import FakeEngine

GUARD_SECONDS = 60
STALL_SECONDS = 0.5
HEADERS = b"GET /livez HTTP/1.1\r\nhost: x\r\nx-slow: "


@pytest_asyncio.fixture(params=["h11", "httptools"])
async def port(app: FastAPI, request: pytest.FixtureRequest) -> AsyncIterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    impatient = BodyLimit(app, max_upload_mib=1, pause_seconds=0.5)
    config = http_config(impatient, http=request.param, log_config=None)
    server = HttpServer(config, STALL_SECONDS, header_seconds=0.5)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    yield listener.getsockname()[1]
    server.should_exit = True
    await running


async def drip(port: int, beginning: bytes, drop: bytes) -> bytes:
    """Send a drop now and then; what the server said by the time it closed, or answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = asyncio.create_task(reader.read(1 << 16))
    writer.write(beginning)
    async with asyncio.timeout(GUARD_SECONDS):
        while not answer.done():
            writer.write(drop)
            await asyncio.wait([answer], timeout=0.1)
    writer.close()
    try:
        return answer.result()
    except ConnectionResetError:  # closed before the last drops were read
        return b""


@pytest.mark.parametrize(("beginning", "drop"), [(b"", b""), (HEADERS, b""), (HEADERS, b"x")])
async def test_headers_that_do_not_come(port: int, beginning: bytes, drop: bytes) -> None:
    assert await drip(port, beginning, drop) == b""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        assert (await client.get("/livez")).status_code == 200


async def test_a_body_that_does_not_come(port: int, keys: Keys) -> None:
    key = keys.create("default", ["inference"])
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
        "content-type: application/json\r\ncontent-length: 1000000\r\n\r\n"
    )
    answer = await drip(port, head.encode(), b" ")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_request"


async def test_an_answer_may_take_longer(port: int, keys: Keys, engine: FakeEngine) -> None:
    headers = {"Authorization": f"Bearer {keys.create('default', ['inference'])}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers) as client:
        body = {"model": "base", "stream": True}
        answer = asyncio.create_task(client.post(CHAT, json=body, timeout=GUARD_SECONDS))
        # Slow connections that came later are gone before it ends.
        assert await drip(port, b"", b"") == b""
        engine.stream_may_end.set()
        assert (await answer).text.endswith("[DONE]\n\n")


@pytest.mark.parametrize("parser", ["h11", "httptools"])
async def test_kept_connections_end_before_requests_are_refused(app: FastAPI, parser: str) -> None:
    lifecycle = Lifecycle()
    config = http_config(Departing(app, lifecycle), http=parser, log_config=None)
    server = HttpServer(config, STALL_SECONDS, is_draining=lambda: lifecycle.draining)
    listener = socket.create_server(("127.0.0.1", 0))
    running = asyncio.create_task(server.serve(sockets=[listener]))

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(head.partition(b"content-length: ")[2].split()[0]))
        return head

    async with asyncio.timeout(GUARD_SECONDS):
        while not server.started:
            await asyncio.sleep(0.01)
        address = listener.getsockname()
        asks, idle = [await asyncio.open_connection(*address) for _ in range(2)]
        for each in (asks, idle):
            assert b"connection: close" not in await ask(*each)
        lifecycle.leaving = True
        assert b"connection: close" in await ask(*asks)
        assert await asks[0].read() == b""
        assert await ask(*await asyncio.open_connection(*address)), "it still answers"
        lifecycle.draining = True
        assert await idle[0].read() == b""
    for _, writer in (asks, idle):
        writer.close()
    server.should_exit = True
    await running


def request(*, answered: bool) -> SimpleNamespace:
    return SimpleNamespace(response_complete=answered)


class Connection:
    def __init__(self, cycle: SimpleNamespace | None) -> None:
        self.cycle = cycle


def test_whose_time_is_up() -> None:
    new, busy, idle = Connection(None), Connection(request(answered=False)), Connection(None)
    waiting = WaitingConnections(idle_seconds=0)
    overdue: Callable[[float], list[Connection]] = lambda now: waiting.overdue(  # noqa: E731
        [new, busy, idle], now
    )
    assert overdue(0) == []
    idle.cycle = request(answered=True)  # asked and answered between two looks
    assert overdue(HEADER_SECONDS) == []
    assert overdue(HEADER_SECONDS + 1) == [new]
    busy.cycle = request(answered=True)
    assert overdue(2 * HEADER_SECONDS + 1) == [new, idle]
    assert overdue(3 * HEADER_SECONDS + 2) == [new, busy, idle]


def test_a_proxys_idle_connection_is_its_own_to_close() -> None:
    """Closed by us, it could be when a request is on its way to it."""
    waiting = WaitingConnections(KEEP_ALIVE_SECONDS)
    connections = [Connection(request(answered=True))]
    assert waiting.overdue(connections, 0) == []
    assert waiting.overdue(connections, KEEP_ALIVE_SECONDS) == []
    assert waiting.overdue(connections, KEEP_ALIVE_SECONDS + HEADER_SECONDS + 1) == connections


class Reader:
    """A connection with so many bytes that its client hasn't read."""

    def __init__(self, num_unsent: int) -> None:
        self.transport, self.num_unsent = self, num_unsent

    def get_write_buffer_size(self) -> int:
        return self.num_unsent


def test_who_reads_nothing_for_too_long() -> None:
    stalled, slow, done = Reader(100), Reader(100), Reader(0)
    writes = StalledWrites(stall_seconds=30)
    connections = [stalled, slow, done]
    assert writes.overdue(connections, 0) == []
    slow.num_unsent, stalled.num_unsent = 99, 100
    assert writes.overdue(connections, 20) == []
    stalled.num_unsent = 200  # written by the server: no sign of a reader
    assert writes.overdue(connections, 31) == [stalled]
    assert writes.overdue(connections, 51) == [stalled, slow]


async def test_an_answer_that_nobody_reads_is_ended(
    app: FastAPI, port: int, keys: Keys, lifecycle: Lifecycle
) -> None:
    ended = asyncio.Event()

    @app.get("/v1/models/endless")
    async def endless() -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield bytes(1 << 16)
                    await asyncio.sleep(0)
            finally:
                ended.set()

        return StreamingResponse(chunks())

    app.router.routes.insert(0, app.router.routes.pop())
    _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
    key = keys.create("default", ["inference"])
    request = f"GET /v1/models/endless HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n"
    writer.write(request.encode())
    async with asyncio.timeout(GUARD_SECONDS):
        await ended.wait()
    writer.close()


async def test_a_pipelined_request_does_not_run_as_the_tenant_before_it(
    port: int, engine: FakeEngine, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Meter | None] = []

    async def probe() -> None:
        seen.append(current_meter.get())

    monkeypatch.setattr(engine, "require_progress", probe)
    body = json.dumps({"model": "base"}).encode()
    key = keys.create("default", ["inference"])
    first = (
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    second = "GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(first.encode() + body + second.encode())
    async with asyncio.timeout(GUARD_SECONDS):
        answers = await reader.read()
    writer.close()
    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert seen == [None]
