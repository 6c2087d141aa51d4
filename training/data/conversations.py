"""Conversations to learn from: their messages and tools are checked and brought into one form.

It is the form in which the server gives a request to the chat template: text is one string, the
arguments of a tool call are an object, and `developer` becomes `system`. So an adapter is trained
on the same text that it will get when it is served.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
"""`role` and `content`. An assistant's may have `tool_calls`, and `weight` 0 to learn nothing."""

Tool = dict[str, Any]
"""A function that the model may call, as in OpenAI's chat API: `type` and `function`."""

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
"""The accepted roles, and the role that each becomes."""

_USED = {"role", "content", "weight", "name", "tool_calls", "tool_call_id", "function_call"}


@dataclass(frozen=True)
class Conversation:
    """Messages that end with an answer, and the tools that the model could call."""

    messages: list[Message]
    tools: list[Tool] = field(default_factory=list)

    @property
    def answer(self) -> Message:
        """Return the last message."""
        return self.messages[-1]

    @property
    def record(self) -> dict[str, Any]:
        """Return the conversation as one record of a JSONL file."""
        tools = {"tools": self.tools} if self.tools else {}
        return {**tools, "messages": self.messages}


def exchange(prompt: str, completion: str) -> Conversation:
    """Return a conversation of one question and one answer."""
    return Conversation(
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    )


def carries_loss(message: Message) -> bool:
    """Return whether the model learns this message: an assistant's with a weight other than 0."""
    return bool(message["role"] == "assistant" and message.get("weight") != 0)


def checked(messages: Any, tools: Any = None) -> Conversation:
    """Return the conversation of these messages, if a model can learn from it.

    Raises:
        ValueError: a message has a wrong form, or there is no question, or no answer to learn. The
            text says what is wrong.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError('"messages" is not a list of messages')
    conversation = Conversation([_message(message) for message in messages], checked_tools(tools))
    if conversation.answer["role"] != "assistant":
        raise ValueError("the last message is not the assistant's, so there is nothing to learn")
    if not any(m["role"] == "user" and m["content"].strip() for m in conversation.messages[:-1]):
        raise ValueError("the user says nothing, so there is nothing to answer")
    learned = [message for message in conversation.messages if carries_loss(message)]
    if not learned:
        raise ValueError("every answer has the weight 0, so there is nothing to learn")
    for message in learned:
        if not message["content"].strip() and not message.get("tool_calls"):
            which = "the last answer" if message is conversation.answer else "an answer"
            raise ValueError(f"{which} is empty, so there is nothing to learn")
    return conversation


def unused_fields(messages: Iterable[Message]) -> set[str]:
    """Return the fields of messages that aren't empty and that training doesn't use."""
    return {
        name
        for message in messages
        for name, value in message.items()
        if name not in _USED and value not in (None, "", [], {})
    }


def _message(message: Any) -> Message:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"every message needs a role, one of {', '.join(ROLES)}")
    role = ROLES[role]
    calls = _tool_calls(message) if role == "assistant" else []
    found: Message = {"role": role, "content": _content(message.get("content"), bool(calls))}
    if calls:
        found["tool_calls"] = calls
    for name in ("name", "tool_call_id"):
        if isinstance(message.get(name), str):
            found[name] = message[name]
    weight = message.get("weight")
    if weight is not None:
        if isinstance(weight, bool) or weight not in (0, 1):
            raise ValueError(f"a message's weight is 0 or 1, not {json.dumps(weight)[:40]}")
        if role == "assistant" and weight == 0:
            found["weight"] = 0
    return found


def _content(content: Any, may_be_missing: bool) -> str:
    """Return the text of a message. Parts of text are joined by a newline, as the server does."""
    if content is None and may_be_missing:
        return ""
    if isinstance(content, list):
        content = "\n".join(_part(part) for part in content)
    if not isinstance(content, str):
        raise ValueError("every message needs a content: a string, or a list of parts of text")
    try:
        content.encode()
    except UnicodeEncodeError:
        raise ValueError("a message holds half a surrogate pair, which isn't text") from None
    return content


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind not in ("text", "input_text", "output_text") or not isinstance(part.get("text"), str):
        raise ValueError(f"a part of a message is {kind!r}: only text can be trained on")
    return str(part["text"])


def _tool_calls(message: Message) -> list[dict[str, Any]]:
    """Return an assistant's calls of tools. OpenAI's older `function_call` counts as one call."""
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise ValueError('"tool_calls" is not a list')
    if message.get("function_call"):
        calls = [*calls, {"function": message["function_call"]}]
    return [_tool_call(call) for call in calls]


def _tool_call(call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError("every tool call needs a function with a name")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of the call of {function['name']!r} aren't a JSON object")
    made: dict[str, Any] = {
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }
    return {"id": call["id"], **made} if isinstance(call.get("id"), str) else made


def checked_tools(tools: Any) -> list[Tool]:
    """Return tools in the form in which the server gives them to the chat template.

    Text is parsed as JSON.

    Raises:
        ValueError: they aren't a list of functions with names.
    """
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else []
        except (ValueError, RecursionError):
            raise ValueError('"tools" is text that isn\'t JSON') from None
    if tools is not None and not isinstance(tools, list):
        raise ValueError('"tools" is not a list')
    return [_tool(tool) for tool in tools or []]


def _tool(tool: Any) -> Tool:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError("every tool needs a function with a name")
    strict = {} if function.get("strict") is None else {"strict": function["strict"]}
    return {
        "type": "function",
        "function": {
            "name": function["name"],
            "description": function.get("description"),
            "parameters": function.get("parameters"),
            **strict,
        },
    }
