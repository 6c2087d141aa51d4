"""Records as people have them."""

from typing import Any

import pytest

from training.data.conversations import exchange
from training.data.formats import UnknownFormat, parse_record


def says(record: Any) -> list[tuple[str, str]]:
    return [(m["role"][0], m["content"]) for m in parse_record(record).conversation.messages]


USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
PAIR = [("u", "a"), ("a", "b")]


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"messages": [USER, ANSWER]}, "messages"),
        ([USER, ANSWER], "messages"),
        ({"messages": [USER, ANSWER], "tools": None, "weight": None}, "messages"),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            "ShareGPT",
        ),
        ({"conversations": [USER, ANSWER]}, "ShareGPT"),
        ({"instruction": "a", "input": "", "output": "b"}, "Alpaca"),
        ({"instruction": "a", "output": "b"}, "Alpaca"),
        ({"prompt": "a", "completion": "b"}, "prompt and completion"),
        ({"prompt": [USER], "completion": [ANSWER]}, "prompt and completion"),
        ({"prompt": [USER], "completion": "b"}, "prompt and completion"),
    ],
)
def test_every_format_is_known_and_read(record: Any, name: str) -> None:
    parsed = parse_record(record)
    assert parsed.format == name
    assert parsed.conversation == exchange("a", "b")
    assert not parsed.unused


def test_alpaca_joins_instruction_and_input() -> None:
    record: dict[str, object] = {
        "instruction": "sum up",
        "input": "a text",
        "output": "b",
        "system": "s",
    }
    assert says(record) == [("s", "s"), ("u", "sum up\n\na text"), ("a", "b")]
    record = {"instruction": "c", "output": "d", "history": [["a", "b"]]}
    assert says(record) == [*PAIR, ("u", "c"), ("a", "d")]


def test_sharegpt_has_calls_and_tools() -> None:
    call = '{"name": "f", "arguments": {"x": 1}}'
    record = {
        "system": "s",
        "tools": '[{"name": "f"}]',
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "function_call", "value": call},
            {"from": "observation", "value": "o"},
            {"from": "gpt", "value": "b"},
        ],
    }
    conversation = parse_record(record).conversation
    assert says(record) == [("s", "s"), ("u", "a"), ("a", ""), ("t", "o"), ("a", "b")]
    (made,) = conversation.messages[2]["tool_calls"]
    assert made["function"] == {"name": "f", "arguments": {"x": 1}}
    assert conversation.tools[0]["function"]["name"] == "f"


def test_answers_within_a_prompt_are_not_learned() -> None:
    record = {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}
    messages = parse_record(record).conversation.messages
    assert [m.get("weight") for m in messages] == [None, 0, None, None]


def test_fields_that_are_not_used_are_named() -> None:
    message = {**ANSWER, "reasoning": "hm", "refusal": None}
    parsed = parse_record({"id": 7, "messages": [USER, message], "source": None})
    assert parsed.unused == {"id", "messages[].reasoning"}
    weighted = {"conversations": [{"from": "human", "value": "a", "mood": 1}, ANSWER]}
    assert parse_record(weighted).unused == {"conversations[].mood"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (3, "not a JSON object"),
        ([], "not a JSON object"),
        ({}, "its fields are nothing"),
        ({"question": "a", "answer": "b"}, "its fields are answer, question"),
        ({"prompt": "a"}, "its fields are prompt"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference data"),
        ({"text": "a"}, "plain text"),
    ],
)
def test_unknown_formats(record: Any, message: str) -> None:
    with pytest.raises(UnknownFormat, match=message):
        parse_record(record)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"conversations": [{"from": "robot", "value": "a"}]}, "not 'robot'"),
        ({"conversations": [{"from": ["gpt"], "value": "a"}]}, '"from" is one of'),
        ({"conversations": "a"}, '"conversations" is not a list'),
        ({"conversations": [{"from": "function_call", "value": "f("}]}, "isn't JSON"),
        ({"instruction": 3, "output": "b"}, "must be strings"),
        ({"instruction": "a", "output": "b", "history": [["a"]]}, "list of pairs"),
        ({"prompt": 3, "completion": "b"}, '"prompt" must be'),
        ({"prompt": "a", "completion": [3]}, '"completion" must be'),
        ({"messages": [USER, 3]}, "needs a role"),
    ],
)
def test_bad_records_of_a_known_format(record: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        parse_record(record)
    assert not isinstance(raised.value, UnknownFormat)
