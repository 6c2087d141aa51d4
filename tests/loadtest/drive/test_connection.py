"""Answers as servers may cut, frame and end them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from loadtest.drive.request import RequestSender, make_call
from loadtest.outcome.request_outcome import Outcome
from loadtest.plan.scenario import Limits

EVENTS = b'data: {"model": "a", "choices": [{"text": "x", "finish_reason": "length"}]}\n\n'
EVENTS += b'data: {"model": "a", "choices": [], "usage": {"completion_tokens": 1}}\n\n'
EVENTS += b"data: [DONE]\n\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
SIZED = HEAD + b"Content-Length: %d\r\n\r\n" % len(EVENTS) + EVENTS
CHUNKED = (
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(EVENTS) + EVENTS + b"\r\n0\r\n\r\n"
)
CLOSED = HEAD + b"Connection: close\r\n\r\n" + EVENTS


@asynccontextmanager
async def server(
    answer: bytes, *, cut: int | None = None, close: bool = False, mute_after: int = 1000
) -> AsyncIterator[tuple[str, list[asyncio.StreamWriter]]]:
    """Gives every request these bytes, `cut` at a time; yields its URL and its connections.

    After `mute_after` answers a connection's next request is read, and the connection closed.
    """
    peers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(writer)
        num_answered = 0
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = next(line for line in head.split(b"\r\n") if b"Content-Length" in line)
            await reader.readexactly(int(length.split(b":")[1]))
            if num_answered == mute_after:
                writer.close()
                return
            num_answered += 1
            for start in range(0, len(answer), cut or len(answer)):
                writer.write(answer[start : start + (cut or len(answer))])
                await asyncio.sleep(0)
            if close:
                writer.close()
                return

    def ended(*_: object) -> None:
        """A client that goes."""

    asyncio.get_running_loop().set_exception_handler(ended)
    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", peers
    for peer in peers:
        peer.close()


async def ask(url: str, times: int = 1, **limits: float) -> list[Outcome]:
    call = make_call("/v1/completions", {"model": "a", "max_tokens": 1}, "key")
    found = []
    async with RequestSender(url, Limits.model_validate(limits)) as sender:
        for _ in range(times):
            found.append(Outcome("t", "a", 0, 0, 0, 1))
            await sender.send(call, found[-1])
    return found


@pytest.mark.parametrize("answer", [SIZED, CHUNKED])
@pytest.mark.parametrize("cut", [None, 1, 7])
async def test_a_whole_answer_is_read_and_its_connection_used_again(
    answer: bytes, cut: int | None
) -> None:
    async with server(answer, cut=cut) as (url, peers):
        found = await ask(url, 3)
    assert [(o.status, o.text, o.tokens_out) for o in found] == [("ok", "x", 1)] * 3
    assert len(peers) == 1


@pytest.mark.parametrize(
    "answer", [CLOSED, CHUNKED.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)]
)
async def test_a_server_that_closes_after_each_answer(answer: bytes) -> None:
    async with server(answer, close=True) as (url, peers):
        assert [o.status for o in await ask(url, 3)] == ["ok"] * 3
    assert len(peers) == 3


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (CHUNKED[:-7], "reset"),
        (SIZED[:-3], "reset"),
        (b"", "reset"),
        (CLOSED[:-60], "truncated"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "garbage"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "garbage"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi", "garbage"),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", "http_302"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy", "http_503"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED, "ok"),
    ],
)
async def test_what_isnt_an_answer_is_named(answer: bytes, status: str) -> None:
    async with server(answer, close=True) as (url, _):
        assert [o.status for o in await ask(url)] == [status]


@pytest.mark.parametrize(
    ("limit", "status"),
    [
        ("stall_seconds", "stall"),
        ("request_seconds", "timeout"),
    ],
)
async def test_waiting_has_limits(limit: str, status: str) -> None:
    async with server(CHUNKED[:-7]) as (url, _):
        assert [o.status for o in await ask(url, 1, **{limit: 0.1})] == [status]


async def test_a_connection_that_was_closed_meanwhile_is_replaced() -> None:
    async with server(SIZED, mute_after=1) as (url, connections):
        assert [outcome.status for outcome in await ask(url, 3)] == ["ok"] * 3
        assert len(connections) == 3
    async with server(SIZED, mute_after=0) as (url, connections):
        assert [outcome.status for outcome in await ask(url)] == ["reset"]
        assert len(connections) == 1, "one that is new isn't asked twice"


async def test_nobody_there() -> None:
    assert [o.status for o in await ask("http://127.0.0.1:1")] == ["connect"]
