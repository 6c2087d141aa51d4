"""The formats in which people keep conversations, and how a record of each is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from training.data.conversations import Conversation, Message, checked, unused_fields

Record = dict[str, Any]


class UnknownFormat(ValueError):
    """A record whose fields fit none of the known formats."""


@dataclass(frozen=True)
class Parsed:
    """A record's conversation, the name of its format, and its unused fields."""

    conversation: Conversation
    format: str
    unused: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Format:
    """A format of conversations. A record has this format if it has all of `fields`."""

    name: str
    example: str
    fields: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[Record], tuple[list[Message], Any]]
    """Returns a record's messages, in OpenAI's form but not yet checked, and its tools."""


def parse_record(record: Any) -> Parsed:
    """Turn one decoded JSON value of any known format into a conversation.

    Raises:
        UnknownFormat: no format has these fields.
        ValueError: the format is known, but nothing can be learned from the record. The text says
            why.
    """
    if isinstance(record, list) and record and all(isinstance(m, dict) for m in record):
        record = {"messages": record}
    if not isinstance(record, dict):
        raise UnknownFormat("not a JSON object")
    present = {name: value for name, value in record.items() if value is not None}
    for known in FORMATS:
        if present.keys() >= set(known.fields):
            messages, tools = known.read(present)
            conversation = checked(messages, tools)
            unused = present.keys() - {*known.fields, *known.optional}
            of_messages = {f"{known.fields[0]}[].{name}" for name in unused_fields(messages)}
            return Parsed(conversation, known.name, frozenset(unused | of_messages))
    raise UnknownFormat(_unknown(present))


def _unknown(record: Record) -> str:
    names = ", ".join(sorted(record)[:8]) or "nothing"
    if {"chosen", "rejected"} <= record.keys():
        return f"preference data ({names}), which can't be trained on here"
    if "text" in record:
        return f"plain text ({names}): training needs a question and an answer"
    return f"no known format: its fields are {names}"


def _messages(record: Record) -> tuple[list[Message], Any]:
    tools = record.get("tools")
    return record["messages"], record.get("functions") if tools is None else tools


SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}


def _sharegpt(record: Record) -> tuple[list[Message], Any]:
    turns = record["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError('"conversations" is not a list of messages')
    messages = [_sharegpt_message(turn) for turn in turns]
    return _system(record) + messages, record.get("tools")


def _sharegpt_message(turn: Message) -> Message:
    if "from" not in turn:
        return turn  # OpenAI's fields under ShareGPT's name
    role, text = turn["from"], turn.get("value")
    if not isinstance(role, str) or role not in SHAREGPT_ROLES:
        raise ValueError(f'"from" is one of {", ".join(SHAREGPT_ROLES)}; not {role!r}')
    others = {key: value for key, value in turn.items() if key not in ("from", "value")}
    message = {**others, "role": SHAREGPT_ROLES[role], "content": text}
    if role == "function_call":
        try:
            calls = json.loads(text) if isinstance(text, str) else text
        except (ValueError, RecursionError):
            raise ValueError("the value of a function_call isn't JSON") from None
        message |= {"content": None, "tool_calls": calls if isinstance(calls, list) else [calls]}
    return message


def _alpaca(record: Record) -> tuple[list[Message], Any]:
    """Read an instruction, with a blank line and the input if there is one, after any history."""
    parts = [record["instruction"], record.get("input") or ""]
    if not all(isinstance(part, str) for part in [*parts, record["output"]]):
        raise ValueError("instruction, input and output must be strings")
    rounds = record.get("history") or []
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in rounds):
        raise ValueError('"history" is a list of pairs of a question and an answer')
    question = "\n\n".join(part for part in parts if part.strip())
    messages = [m for pair in [*rounds, [question, record["output"]]] for m in _round(*pair)]
    return _system(record) + messages, None


def _round(question: Any, answer: Any) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _system(record: Record) -> list[Message]:
    text = record.get("system")
    return [{"role": "system", "content": text}] if text else []


def _prompt_completion(record: Record) -> tuple[list[Message], Any]:
    """Read strings, or lists of messages as in TRL. Answers in the prompt aren't learned."""
    prompt = _side(record["prompt"], "user", "prompt")
    before = [
        {**message, "weight": 0} if message.get("role") == "assistant" else message
        for message in prompt
    ]
    return before + _side(record["completion"], "assistant", "completion"), record.get("tools")


def _side(value: Any, role: str, name: str) -> list[Message]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not all(isinstance(m, dict) for m in value):
        raise ValueError(f'"{name}" must be a string or a list of messages')
    return value


FORMATS = (
    Format(
        "messages",
        '{"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}]}',
        ("messages",),
        ("tools", "functions"),
        _messages,
    ),
    Format(
        "ShareGPT",
        '{"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}]}',
        ("conversations",),
        ("system", "tools"),
        _sharegpt,
    ),
    Format(
        "Alpaca",
        '{"instruction": …, "input": …, "output": …}',
        ("instruction", "output"),
        ("input", "system", "history"),
        _alpaca,
    ),
    Format(
        "prompt and completion",
        '{"prompt": …, "completion": …}, as strings or as lists of messages',
        ("prompt", "completion"),
        ("tools",),
        _prompt_completion,
    ),
)
