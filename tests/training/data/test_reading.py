"""What is said of a file of training data: its format, its bad records, its unused fields."""

import json
from pathlib import Path
from typing import Any

import pytest

from training.data.conversations import Conversation, checked_tools, exchange
from training.data.reading import (
    read_conversations,
    read_data,
    read_whole_data,
    write_conversations,
)
from training.errors import DataError

GOOD = {"prompt": "x", "completion": "y"}


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records))
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    conversations = [exchange(f"line{end}end", "yes") for end in "\n\r\x0b\x85\u2028"]
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "weight": 0},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    conversations.append(Conversation(messages, checked_tools([{"name": "f"}])))
    write_conversations(tmp_path / "data.jsonl", conversations)
    assert read_conversations(tmp_path / "data.jsonl") == conversations


def test_formats_may_be_mixed_and_are_counted(tmp_path: Path) -> None:
    alpaca = {"instruction": "a", "output": "b", "id": 3}
    data = read_whole_data(write(tmp_path / "data.jsonl", [GOOD, alpaca, GOOD]))
    assert len(data.conversations) == 3
    assert data.notes == [
        "JSON lines: 2 × prompt and completion, 1 × Alpaca",
        "the field 'id' isn't used; 1 record(s) have it",
    ]


def test_all_bad_records_are_counted_and_ten_are_shown(tmp_path: Path) -> None:
    bad = ["{", [], {"prompt": "x"}, {"messages": []}, {"messages": [3]}]
    bad += [{"prompt": "x", "completion": " "}] * 20
    with pytest.raises(DataError) as error:
        read_conversations(write(tmp_path / "data.jsonl", [*bad, GOOD]))
    text = str(error.value)
    assert "25 bad line(s)" in text
    assert all(f"line {number}:" in text for number in range(1, 11))
    assert "line 11:" not in text
    assert text.endswith("and 15 more")


@pytest.mark.parametrize("number", [1, 10_000])
def test_an_unknown_format_is_one_message(tmp_path: Path, number: int) -> None:
    file = write(tmp_path / "data.jsonl", [{"question": "a", "answer": "b"}] * number)
    with pytest.raises(DataError) as error:
        read_data(file)
    assert "its fields are answer, question" in str(error.value)
    assert "Alpaca" in str(error.value)
    assert len(str(error.value)) < 1000


def test_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it isn't there"):
        read_conversations(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="has no examples"):
        read_conversations(write(tmp_path / "empty.jsonl", ["", ""]))
    with pytest.raises(DataError, match="has no examples"):
        read_conversations(write(tmp_path / "array.json", ["[]"]))
