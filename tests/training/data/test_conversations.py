"""Messages brought into the form in which the server hands them to the chat template."""

from typing import Any

import pytest

from training.data.conversations import carries_loss, checked, checked_tools, exchange

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
USER = {"role": "user", "content": "hi"}


def answer(**fields: Any) -> dict[str, Any]:
    return {"role": "assistant", **fields}


def test_an_exchange() -> None:
    conversation = exchange("hi", "there")
    assert conversation.messages == [USER, answer(content="there")]
    assert conversation.record == {"messages": conversation.messages}
    assert conversation.answer["content"] == "there"


def test_calls_have_their_arguments_as_objects() -> None:
    (call,) = checked([USER, answer(content=None, tool_calls=[CALL])]).answer["tool_calls"]
    assert call == {
        "id": "1",
        "type": "function",
        "function": {"name": "f", "arguments": {"x": 1}},
    }
    older = answer(content=None, function_call={"name": "f", "arguments": ""})
    (call,) = checked([USER, older]).answer["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": {}}


def test_what_a_tool_says_and_an_empty_content_beside_a_call() -> None:
    messages = [
        USER,
        answer(content=None, tool_calls=[CALL]),
        {"role": "tool", "tool_call_id": "1", "content": "ok"},
        answer(content="done"),
    ]
    found = checked(messages).messages
    assert [m["content"] for m in found] == ["hi", "", "ok", "done"]
    assert found[2] == messages[2]


def test_roles_and_parts_of_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    found = checked([{"role": "developer", "content": "be brief"}, USER, answer(content=parts)])
    assert [m["role"] for m in found.messages] == ["system", "user", "assistant"]
    assert found.answer["content"] == "a\nb"


def test_weights_say_what_is_learned() -> None:
    messages = [USER, answer(content="bad", weight=0), USER, answer(content="good", weight=1)]
    assert [carries_loss(m) for m in checked(messages).messages] == [False, False, False, True]


def test_tools_are_as_the_server_renders_them() -> None:
    bare = {"name": "f", "parameters": {}}
    wanted = {
        "type": "function",
        "function": {"name": "f", "description": None, "parameters": {}},
    }
    assert checked_tools([bare]) == [wanted]
    assert checked_tools([{"type": "function", "function": bare}]) == [wanted]
    assert checked_tools('[{"name": "f", "parameters": {}}]') == [wanted]
    assert checked_tools(None) == checked_tools("") == []


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "not a list of messages"),
        ("hi", "not a list of messages"),
        ([3], "needs a role"),
        ([{"role": ["user"]}], "needs a role"),
        ([{"role": "robot", "content": "x"}], "needs a role"),
        ([{"role": "user", "content": 3}], "needs a content"),
        ([USER, answer(content=None)], "needs a content"),
        ([USER], "last message is not the assistant's"),
        ([answer(content="y")], "the user says nothing"),
        ([{"role": "user", "content": " "}, answer(content="y")], "the user says nothing"),
        ([USER, answer(content=" ")], "the last answer is empty"),
        ([USER, answer(content=""), USER, answer(content="y")], "an answer is empty"),
        ([USER, answer(content="y", weight=0.5)], "weight is 0 or 1, not 0.5"),
        ([USER, answer(content="y", weight=True)], "weight is 0 or 1, not true"),
        ([USER, answer(content="y", weight=0)], "every answer has the weight 0"),
        ([USER, answer(content="\ud800")], "half a surrogate pair"),
        ([USER, answer(content=[{"type": "image_url"}])], "'image_url': only text"),
        ([USER, answer(content=None, tool_calls={})], "needs a content"),
        ([USER, answer(content=None, tool_calls=3)], '"tool_calls" is not a list'),
        ([USER, answer(content=None, tool_calls=[{}])], "function with a name"),
        (
            [USER, answer(content=None, function_call={"name": "f", "arguments": "{"})],
            "arguments of the call of 'f' aren't a JSON object",
        ),
    ],
)
def test_what_cannot_be_learned_from_is_refused(messages: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked(messages)


@pytest.mark.parametrize("tools", [3, [3], [{"name": 3}], "{", [{"function": "f"}]])
def test_bad_tools_are_refused(tools: Any) -> None:
    with pytest.raises(ValueError, match="tool"):
        checked_tools(tools)
