"""The client reads streams, pages and metrics, and doesn't overlook what is wrong."""

import json
from typing import Any

import httpx
import pytest

from loadtest.errors import LoadTestError
from loadtest.measurements.client import Client, Generation

REQUEST = Generation("a", [1, 2, 3], 2)


def answering(*responses: httpx.Response) -> Client:
    client, queue = Client("http://server", "key"), iter(responses)
    transport = httpx.MockTransport(lambda request: next(queue))
    client._http = httpx.AsyncClient(transport=transport, base_url="http://server")
    return client


def events(*data: Any) -> httpx.Response:
    lines = [f"data: {json.dumps(event)}\n\n" for event in data] + ["data: [DONE]\n\n"]
    return httpx.Response(200, text="".join(lines), headers={"x-adapter-tier": "host"})


def tokens(*ids: int, model: str = "default/a@1") -> dict[str, Any]:
    return {"model": model, "choices": [{"token_ids": list(ids)}]}


async def test_a_stream_is_read_with_who_and_when() -> None:
    answer = await answering(events(tokens(5), tokens(), tokens(7))).stream(REQUEST)
    assert (answer.model, answer.tier) == ("default/a@1", "host")
    assert answer.tokens == [5, 7]
    assert answer.asked_at <= answer.answered_at <= answer.arrivals[0] <= answer.arrivals[1]
    assert answer.first_token_seconds == answer.arrivals[0] - answer.asked_at


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (events(tokens(5)), "2 tokens asked, 1 came"),
        (events(tokens(5), tokens(6, model="default/a@2")), "went on as default/a@2"),
        (events(tokens(5), {"error": {"message": "the engine died"}}), "the engine died"),
        (httpx.Response(503, json={"error": {"code": "slot_timeout"}}), "503 .*slot_timeout"),
    ],
)
async def test_what_is_wrong_with_a_stream_is_said(response: httpx.Response, message: str) -> None:
    with pytest.raises(LoadTestError, match=message):
        await answering(response).stream(REQUEST)


async def test_adapters_are_listed_over_pages() -> None:
    pages = [{"data": [{"name": "a"}], "next": "x"}, {"data": [{"name": "b"}], "next": None}]
    client = answering(*(httpx.Response(200, json=page) for page in pages))
    assert await client.adapter_names() == {"a", "b"}


async def test_a_metric_is_the_sum_of_the_series_that_are_meant() -> None:
    text = """# TYPE loads counter
loads{tier="disk",outcome="ok"} 3.0
loads{tier="origin",outcome="ok"} 4.0
loads{tier="disk",outcome="failed"} 5.0
loads_created{tier="disk",outcome="ok"} 1.7e9
"""
    found = [httpx.Response(200, text=text)] * 3
    client = answering(*found)
    assert await client.metric("loads", outcome="ok") == 7
    assert await client.metric("loads") == 12
    assert await client.metric("unloads") == 0
