import json
from pathlib import Path

import pytest

from training.data import IGNORED_LABEL, Collator, Sample, exchange, read_conversations, tokenize
from training.errors import DataError


class CharacterTokenizer:
    """One token a character, ChatML-like, so that spans can be read off."""

    eos_token = "$"

    def apply_chat_template(self, messages, tokenize, add_generation_prompt=False):  # type: ignore[no-untyped-def]
        assert not tokenize
        text = "".join(f"<{m['role'][0]}>{m['content']}$\n" for m in messages)
        return text + ("<a>" if add_generation_prompt else "")

    def __call__(self, text, add_special_tokens, return_offsets_mapping):  # type: ignore[no-untyped-def]
        return {
            "input_ids": [ord(c) for c in text],
            "offset_mapping": [(i, i + 1) for i in range(len(text))],
        }


def learned(conversation: list[dict[str, str]]) -> str:
    sample = tokenize(CharacterTokenizer(), conversation)
    assert len(sample.labels) == len(sample.input_ids)
    return "".join(chr(label) for label in sample.labels if label != IGNORED_LABEL)


def test_only_the_answer_and_its_end_are_learned() -> None:
    assert learned(exchange("question", "answer")) == "answer$"


def test_every_turn_of_the_assistant_is_learned() -> None:
    conversation = [
        {"role": "system", "content": "s"},
        *exchange("a", "one"),
        *exchange("b", "two"),
    ]
    assert learned(conversation) == "one$two$"


def test_collator_pads_and_masks() -> None:
    batch = Collator(pad_token_id=9)([Sample([1, 2, 3], [-100, 2, 3]), Sample([4], [4])])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_both_forms_are_read(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    messages = exchange("hi", "there")
    file.write_text(
        json.dumps({"prompt": "hi", "completion": "there"})
        + "\n\n"
        + json.dumps({"messages": messages})
    )
    assert read_conversations(file) == [messages, messages]


def test_all_bad_lines_are_listed(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    lines = [
        "{",
        "[]",
        '{"prompt": "x"}',
        '{"messages": []}',
        '{"messages": [{"role": "robot", "content": "x"}]}',
        '{"messages": [{"role": "user", "content": 3}]}',
        '{"messages": [{"role": "user", "content": "x"}]}',
        '{"prompt": "x", "completion": "y"}',
    ]
    file.write_text("\n".join(lines))
    with pytest.raises(DataError) as error:
        read_conversations(file)
    assert "7 bad line(s)" in str(error.value)
    assert all(f"line {number}:" in str(error.value) for number in range(1, 8))


def test_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't read"):
        read_conversations(tmp_path / "missing.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no examples"):
        read_conversations(tmp_path / "empty.jsonl")
