import json
import random
from pathlib import Path

import pytest

from training.data.conversations import (
    IGNORED_LABEL,
    Collator,
    Sample,
    exchange,
    read_conversations,
    split_off,
    tokenize,
    tokenize_all,
    training_order,
    write_conversations,
)
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


def test_an_evaluation_asks_for_the_last_answer() -> None:
    sample = tokenize(
        CharacterTokenizer(), [*exchange("a", "one"), *exchange("b", "two")], last_only=True
    )
    assert "".join(chr(x) for x in sample.labels if x != IGNORED_LABEL) == "two$"


def test_collator_pads_and_masks() -> None:
    batch = Collator(pad_token_id=9)([Sample([1, 2, 3], [-100, 2, 3]), Sample([4], [4])])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    conversations = [exchange(f"line{end}end", "yes") for end in "\n\r\x0b\x85\u2028"]
    write_conversations(tmp_path / "data.jsonl", conversations)
    assert read_conversations(tmp_path / "data.jsonl") == conversations
    text = (tmp_path / "data.jsonl").read_text(encoding="utf-8")
    windows = "\ufeff" + text.replace("\n", "\r\n")
    (tmp_path / "windows.jsonl").write_text(windows, encoding="utf-8", newline="")
    assert read_conversations(tmp_path / "windows.jsonl") == conversations


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


def test_data_without_a_question_or_an_answer_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    lines = [
        '{"prompt": "x", "completion": " "}',
        '{"prompt": "", "completion": "y"}',
        '{"messages": [{"role": "assistant", "content": "y"}]}',
    ]
    file.write_text("\n".join(lines))
    with pytest.raises(DataError) as error:
        read_conversations(file)
    assert "line 1: the last answer is empty" in str(error.value)
    assert "line 2: the user says nothing" in str(error.value)
    assert "line 3: the user says nothing" in str(error.value)


def test_long_examples_are_listed_or_cut() -> None:
    tokenizer = CharacterTokenizer()
    data = [exchange("q", "short"), exchange("q", "longer answer"), exchange("long" * 9, "a")]
    with pytest.raises(DataError, match=r"2 example\(s\) are longer .* number 2, 3"):
        tokenize_all(tokenizer, data, max_length=20)
    cut = tokenize_all(tokenizer, data[:2], max_length=20, truncate=True)
    assert [len(sample.input_ids) for sample in cut] == [16, 20]
    with pytest.raises(DataError, match=r"no answer within max_length=20 tokens: .* number 3"):
        tokenize_all(tokenizer, data, max_length=20, truncate=True)


def test_a_share_is_split_off() -> None:
    items = list(range(40))
    rest, part = split_off(items, 0.25, seed=3)
    assert len(part) == 10
    assert sorted(rest + part) == items
    assert split_off(items, 0.25, seed=3) == (rest, part)
    assert split_off(items, 0.25, seed=4) != (rest, part)
    assert split_off(items, 0, seed=3) == (items, [])


def test_the_order_has_batches_of_like_length_and_leaves_nothing_out() -> None:
    lengths = random.Random(0).choices(range(10, 500), k=204)
    order = training_order(lengths, 408, batch_size=8, seed=1)
    assert sorted(order) == sorted([*range(204)] * 2)
    assert order == training_order(lengths, 408, batch_size=8, seed=1)
    assert order != training_order(lengths, 408, batch_size=8, seed=2)
    batches = [order[start : start + 8] for start in range(0, 408, 8)]
    spread = sum(max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches) / 51
    assert spread < 30, "random batches of eight spread over about 380"
    means = [sum(lengths[i] for i in batch) for batch in batches]
    assert means != sorted(means), "long and short batches are mixed"
