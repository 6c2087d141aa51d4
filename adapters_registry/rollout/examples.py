"""Held-out conversations in OpenAI's format: what is asked, and which answer is right. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from adapters_registry.errors import InvalidCanary
from adapters_registry.rollout.scores import is_json

SPARE_TOKENS = 16
MOST_TOKENS = 1024
"""No answer may be longer, however long the right ones are."""


@dataclass(frozen=True)
class Example:
    """A prompt and its right answer."""

    messages: list[dict[str, Any]]
    expected: str
    tools: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, conversation: Mapping[str, Any]) -> Example:
        """Return the example of a conversation whose last message is the right answer.

        Raises:
            InvalidCanary: it does not end with an answer, or asks nothing.
        """
        messages, tools = conversation.get("messages"), conversation.get("tools") or []
        if (
            not _are_objects(messages)
            or len(messages) < 2
            or messages[-1].get("role") != "assistant"
        ):
            raise InvalidCanary(
                "each conversation is a list of messages that ends with an assistant's answer",
                param="data",
            )
        if not _are_objects(tools):
            raise InvalidCanary("tools are a list of objects", param="data")
        expected = text_of(messages[-1])
        if not expected:
            raise InvalidCanary("an answer is empty", param="data")
        return cls([_as_sent(message) for message in messages[:-1]], expected, tools)

    def body(self, model: str, max_tokens: int) -> dict[str, Any]:
        """Return the request that asks a model for its greedy answer."""
        tools = {"tools": self.tools} if self.tools else {}
        settings = {"temperature": 0, "max_tokens": max_tokens}
        return {"model": model, "messages": self.messages, **tools, **settings}


def examples_of(conversations: Sequence[Mapping[str, Any]], metric: str) -> list[Example]:
    """Return the examples of conversations, or raise `InvalidCanary`."""
    examples = [Example.of(conversation) for conversation in conversations]
    try:
        json.dumps(conversations, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidCanary("a text has half a surrogate pair", param="data") from None
    if metric == "json_valid" and not all(is_json(example.expected) for example in examples):
        raise InvalidCanary("metric json_valid: the right answers aren't all JSON", param="metric")
    return examples


def most_tokens(examples: Sequence[Example]) -> int:
    """Return how long an answer may become: somewhat longer than the longest right one.

    A token has two characters at least, in most texts.
    """
    longest = max(len(example.expected) for example in examples)
    return min(longest // 2 + SPARE_TOKENS, MOST_TOKENS)


def text_of(message: Mapping[str, Any]) -> str:
    """Return what is compared of an answer: its text, or its tool calls as JSON."""
    calls = message.get("tool_calls")
    if not calls:
        content = message.get("content")
        return content.strip() if isinstance(content, str) else ""
    called = [_function(call) for call in calls] if _are_objects(calls) else []
    plain = [{"name": c.get("name"), "arguments": _decoded(c.get("arguments"))} for c in called]
    return json.dumps(plain, sort_keys=True, ensure_ascii=False)


def _as_sent(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message as the API takes it: the arguments of a tool call are a text of JSON."""
    calls = message.get("tool_calls")
    if not _are_objects(calls):
        return message
    sent = []
    for call in calls:
        function = dict(_function(call))
        if not isinstance(function.get("arguments"), str):
            function["arguments"] = json.dumps(function.get("arguments"))
        sent.append({**call, "type": "function", "function": function})
    return {**message, "tool_calls": sent}


def _are_objects(values: Any) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(values, list) and all(isinstance(value, dict) for value in values)


def _function(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    return function if isinstance(function, dict) else {}


def _decoded(arguments: Any) -> Any:
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments
