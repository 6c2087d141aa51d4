"""What a measurement asks is read whole, and what is wrong with it isn't overlooked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from loadtest.errors import LoadTestError
from loadtest.measurements.measured_server import Generation, MeasuredServer
from tests.loadtest.fake_server import measured, stream_of

REQUEST = Generation("a", [1, 2, 3], 2)


@asynccontextmanager
async def answering(response: Response) -> AsyncIterator[MeasuredServer]:
    async def answer(request: Request) -> Response:
        assert request.headers["authorization"] == "Bearer key"
        return response

    async with measured(
        Starlette(routes=[Route("/v1/completions", answer, methods=["POST"])])
    ) as s:
        yield s


def tokens(*ids: int, model: str = "default/a@1") -> dict[str, Any]:
    return {"model": model, "choices": [{"text": "x" * len(ids), "token_ids": list(ids)}]}


async def test_a_stream_is_read_with_who_and_when() -> None:
    events = tokens(5), tokens(), tokens(7)
    async with answering(stream_of(*events, x_adapter_tier="host")) as server:
        answer = await server.stream(REQUEST)
    assert (answer.version, answer.tier) == ("default/a@1", "host")
    assert answer.token_ids == [5, 7]
    assert answer.answered is not None
    assert answer.sent <= answer.answered <= answer.token_times[0] <= answer.token_times[1]
    assert answer.ttft == answer.token_times[0] - answer.due


async def test_tokens_that_come_together_have_the_same_time() -> None:
    async with answering(stream_of(tokens(5, 6))) as server:
        answer = await server.stream(REQUEST)
    assert answer.token_times == [answer.first] * 2


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (stream_of(tokens(5)), "2 tokens asked, 1 came"),
        (stream_of(tokens(5), tokens(6, model="default/a@2")), "several versions"),
        (stream_of(tokens(5), {"error": {"message": "the engine died"}}), "the engine died"),
        (JSONResponse({"error": {"code": "slot_timeout"}}, 503), "503.*slot_timeout"),
    ],
)
async def test_what_is_wrong_with_a_stream_is_said(response: Response, message: str) -> None:
    async with answering(response) as server:
        with pytest.raises(LoadTestError, match=message):
            await server.stream(REQUEST)


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (JSONResponse({"usage": {"completion_tokens": 1}}), "2 tokens asked"),
        (JSONResponse({"error": {"code": "slot_timeout"}}, 503), "503.*slot_timeout"),
        (PlainTextResponse("<html>"), "not JSON: <html>"),
    ],
)
async def test_what_is_wrong_with_a_whole_answer_is_said(response: Response, message: str) -> None:
    async with answering(response) as server:
        with pytest.raises(LoadTestError, match=message):
            await server.generate(REQUEST)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nowhere", "http://[", "http://a:b"])
async def test_a_server_that_is_not_there(url: str) -> None:
    async with MeasuredServer.connect("http://127.0.0.1:1", "key") as server:
        client = type(server.client)(url, server.client.http)
        with pytest.raises(LoadTestError, match="no answer from"):
            await client.call("GET", "/v1/models")
