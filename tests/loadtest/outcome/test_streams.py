"""Streams are read the same however they are cut, and nonsense is named."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.outcome.streams import Events, Reading, StreamBroken

STREAM = (
    b': ping\n\ndata: {"a": 1}\n\nevent: x\ndata: one\ndata: two\n\nid: 1\r\n\r\ndata: [DONE]\n\n'
)
EXPECTED = [b'{"a": 1}', b"one\ntwo", b"[DONE]"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_events_are_the_same_however_the_bytes_are_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    events, found = Events(), []
    for begin, end in itertools.pairwise(edges):
        found += events.feed(STREAM[begin:end])
    assert found == EXPECTED
    assert not events.rest


def test_what_is_no_event_is_garbage() -> None:
    with pytest.raises(StreamBroken, match="not a server-sent event"):
        Events().feed(b"<html>oops</html>\n\n")


@pytest.mark.parametrize("cut", range(1, 24))
def test_an_end_of_line_of_two_bytes_may_come_apart(cut: int) -> None:
    stream, events = b"data: 1\r\n\r\ndata: 2\r\n\r\n", Events()
    assert events.feed(stream[:cut]) + events.feed(stream[cut:]) == [b"1", b"2"]


@pytest.mark.parametrize(
    "data",
    [
        b"{not json",
        b"[]",
        b'{"choices": [{}]}',
        b'{"choices": [1]}',
        b'{"model": 1, "choices": []}',
        b'{"usage": {"prompt_tokens": "7"}}',
        b'{"choices": [{"text": 5}]}',
        b'{"choices": [{"text": "a", "token_ids": "ab"}]}',
        b'{"choices": [{"delta": {"content": ["a"]}}]}',
        b'{"choices": [{"text": "a", "logprobs": {"tokens": [1], "token_logprobs": [-1]}}]}',
        b'{"choices": [{"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": [[]]}}]}',
    ],
)
def test_what_is_no_chunk_is_garbage(data: bytes) -> None:
    with pytest.raises(StreamBroken) as error:
        Reading().take(data)
    assert error.value.status == "garbage"


def test_an_error_in_the_stream_is_one() -> None:
    with pytest.raises(StreamBroken) as error:
        Reading().take(b'{"error": {"message": "died"}}')
    assert error.value.status == "stream_error"


def test_two_models_in_one_stream_are_noticed() -> None:
    reading = Reading()
    for model in ("t/a@1", "t/a@1", "t/a@2"):
        assert not reading.is_mixed
        reading.take(json.dumps({"model": model, "choices": []}).encode())
    assert reading.is_mixed


def test_log_probabilities_are_read_in_either_apis_shape() -> None:
    completions = {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"a": -0.5}]}
    chat = {
        "content": [
            {"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "a", "logprob": -0.5}]}
        ]
    }
    readings = []
    for logprobs in (completions, chat):
        reading = Reading()
        chunk = {"choices": [{"text": "a", "finish_reason": None, "logprobs": logprobs}]}
        assert reading.take(json.dumps(chunk).encode())
        readings.append(reading.tokens)
    assert readings[0] == readings[1]
    assert readings[0][0].logprob == -0.5
