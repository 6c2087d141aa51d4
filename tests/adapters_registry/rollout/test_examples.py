"""Held-out conversations: what is asked, and what is compared."""

from __future__ import annotations

from typing import Any

import pytest

from adapters_registry.errors import InvalidCanary
from adapters_registry.rollout.examples import Example, examples_of, most_tokens, text_of

ASKED = {"role": "user", "content": "Turn on the light"}


def call(arguments: Any) -> dict[str, Any]:
    return {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "on", "arguments": arguments}}],
    }


def test_an_answer_is_its_text() -> None:
    example = Example.of({"messages": [ASKED, {"role": "assistant", "content": " done "}]})
    assert example.expected == "done"
    body = example.body("default/home@2", 16)
    assert body["messages"] == [ASKED]
    assert (body["model"], body["temperature"]) == ("default/home@2", 0)
    assert "tools" not in body


def test_tool_calls_are_compared_by_what_they_call() -> None:
    right = text_of(call({"area": "hall", "level": 3}))
    assert text_of(call('{"level": 3, "area": "hall"}')) == right
    assert text_of(call('{"level": 4, "area": "hall"}')) != right
    assert text_of(call("{")) != right


def test_earlier_tool_calls_are_sent_as_the_api_takes_them() -> None:
    answer = {"role": "assistant", "content": "ok"}
    example = Example.of(
        {"messages": [ASKED, call({"a": 1}), answer], "tools": [{"type": "function"}]}
    )
    (sent,) = example.messages[1]["tool_calls"]
    assert sent == {"type": "function", "function": {"name": "on", "arguments": '{"a": 1}'}}
    assert example.body("m", 1)["tools"] == [{"type": "function"}]


@pytest.mark.parametrize(
    "conversation",
    [
        {},
        {"messages": "hello"},
        {"messages": [ASKED]},
        {"messages": [ASKED, ASKED]},
        {"messages": [ASKED, "x"]},
        {"messages": [ASKED, {"role": "assistant", "content": "  "}]},
        {"messages": [ASKED, {"role": "assistant", "content": "x"}], "tools": 3},
        {"messages": [ASKED, {"role": "assistant", "content": ["\ud800"]}]},
    ],
)
def test_conversations_without_an_answer(conversation: dict[str, Any]) -> None:
    with pytest.raises(InvalidCanary):
        Example.of(conversation)


def test_json_is_judged_only_where_all_answers_are_json() -> None:
    chat = {"messages": [ASKED, {"role": "assistant", "content": "no JSON"}]}
    with pytest.raises(InvalidCanary, match="json_valid"):
        examples_of([chat], "json_valid")
    assert len(examples_of([chat], "rouge_l")) == 1


@pytest.mark.parametrize("calls", [3, "x", [3], [{"function": 3}], [{}]])
def test_tool_calls_of_any_shape_are_read(calls: Any) -> None:
    odd = {"role": "assistant", "tool_calls": calls}
    example = Example.of({"messages": [ASKED, odd, odd]})
    assert example.messages[0] == ASKED


def test_text_that_cannot_be_sent_is_refused() -> None:
    chat = {"messages": [ASKED, {"role": "assistant", "content": "\ud800"}]}
    with pytest.raises(InvalidCanary, match="surrogate"):
        examples_of([chat], "exact_match")


def test_answers_have_a_bound() -> None:
    def example(text: str) -> Example:
        return Example([ASKED], text)

    assert most_tokens([example("a" * 10), example("a" * 40)]) == 36
    assert most_tokens([example("a" * 9000)]) == 1024
