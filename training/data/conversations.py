"""Chat-format training data: read, checked, turned into token ids with a loss mask.

A line of the JSONL file is either `{"messages": [{"role", "content"}, ...]}` or
`{"prompt": ..., "completion": ...}`. Only the assistant's tokens carry loss.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.errors import DataError

IGNORED_LABEL = -100
"""The label that `torch.nn.CrossEntropyLoss` skips by default."""

ROLES = ("system", "user", "assistant")

Message = dict[str, str]
Conversation = list[Message]


def exchange(prompt: str, completion: str) -> Conversation:
    """A conversation of one question and one answer."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


def read_conversations(path: Path) -> list[Conversation]:
    """Read a JSONL file of conversations.

    Raises:
        DataError: the file is missing or empty, or has bad lines; all of them are listed.
    """
    try:
        # Not splitlines(), which also splits at characters that JSON strings may hold as they are.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"can't read the training data {path}: {error}") from error
    conversations: list[Conversation] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            conversations.append(parse_conversation(json.loads(line)))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        raise DataError(f"{path} has {len(problems)} bad line(s):\n" + "\n".join(problems))
    if not conversations:
        raise DataError(f"{path} has no examples")
    return conversations


def parse_conversation(record: Any) -> Conversation:
    """Turn one decoded JSON record into a conversation.

    Raises:
        ValueError: the record is no conversation that ends with the assistant; says why.
    """
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    if "messages" not in record:
        prompt, completion = record.get("prompt"), record.get("completion")
        if not isinstance(prompt, str) or not isinstance(completion, str):
            raise ValueError('needs "messages", or "prompt" and "completion" as strings')
        return _two_sided(exchange(prompt, completion))
    messages = record["messages"]
    if not isinstance(messages, list) or not messages:
        raise ValueError('"messages" is not a list of messages')
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise ValueError(f"every message needs a role, one of {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str):
            raise ValueError("every message needs a content string")
    if messages[-1]["role"] != "assistant":
        raise ValueError("the last message is not the assistant's, so there is nothing to learn")
    return _two_sided([{key: message[key] for key in ("role", "content")} for message in messages])


def _two_sided(conversation: Conversation) -> Conversation:
    """The conversation, if it asks something and answers it."""
    *before, answer = conversation
    if not any(m["role"] == "user" and m["content"].strip() for m in before):
        raise ValueError("the user says nothing, so there is nothing to answer")
    if not answer["content"].strip():
        raise ValueError("the last answer is empty, so there is nothing to learn")
    return conversation


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> None:
    """Write conversations as JSONL."""
    with path.open("w", encoding="utf-8") as file:
        for conversation in conversations:
            file.write(json.dumps({"messages": conversation}, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class Sample:
    """One tokenised conversation; `labels` is `input_ids` where loss is taken, else -100."""

    input_ids: list[int]
    labels: list[int]


def tokenize(tokenizer: Any, conversation: Conversation, *, last_only: bool = False) -> Sample:
    """Render a conversation with the base's chat template and mask all but the answers.

    With `last_only` all but the last answer, which is what an evaluation asks for.

    An answer's span starts where the template's generation prompt ends and includes the
    end-of-turn token, so that the adapter learns to stop.
    """
    text = tokenizer.apply_chat_template(conversation, tokenize=False)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    labels = [IGNORED_LABEL] * len(encoded["input_ids"])
    spans = _answer_spans(tokenizer, conversation, text)
    for start, end in spans[-1:] if last_only else spans:
        for index, (token_start, token_end) in enumerate(encoded["offset_mapping"]):
            if start <= token_start and token_end <= end and token_end > token_start:
                labels[index] = encoded["input_ids"][index]
    return Sample(encoded["input_ids"], labels)


def _answer_spans(tokenizer: Any, conversation: Conversation, text: str) -> list[tuple[int, int]]:
    """Character spans of the assistant's turns in the rendered text, end token included."""
    spans = []
    for index, message in enumerate(conversation):
        if message["role"] != "assistant":
            continue
        prompt = tokenizer.apply_chat_template(
            conversation[:index], tokenize=False, add_generation_prompt=True
        )
        if not text.startswith(prompt):
            raise DataError("the base's chat template rewrites earlier turns; can't mask the loss")
        end_token = text.find(tokenizer.eos_token, len(prompt))
        end = len(text) if end_token < 0 else end_token + len(tokenizer.eos_token)
        spans.append((len(prompt), end))
    return spans


def tokenize_all(
    tokenizer: Any, conversations: list[Conversation], max_length: int, truncate: bool = False
) -> list[Sample]:
    """Tokenise conversations; those over `max_length` tokens are refused, or cut if told so.

    Raises:
        DataError: some are too long, or would lose their whole answer; lists all of them.
    """
    samples = [tokenize(tokenizer, conversation) for conversation in conversations]
    too_long = [i for i, sample in enumerate(samples, 1) if len(sample.input_ids) > max_length]
    if too_long and not truncate:
        raise DataError(
            f"{len(too_long)} example(s) are longer than max_length={max_length} tokens: raise "
            f"--max-length, or cut them with --truncate; counted from 1, {_listed(too_long)}"
        )
    cut = [Sample(s.input_ids[:max_length], s.labels[:max_length]) for s in samples]
    silent = [i for i, s in enumerate(cut, 1) if all(x == IGNORED_LABEL for x in s.labels)]
    if silent:
        raise DataError(
            f"{len(silent)} example(s) have no answer within max_length={max_length} tokens: "
            f"counted from 1, {_listed(silent)}"
        )
    return cut


def _listed(numbers: list[int]) -> str:
    return "number " + ", ".join(map(str, numbers))


def split_off(items: list[Any], share: float, seed: int) -> tuple[list[Any], list[Any]]:
    """The rest, and a random share (at least one if any share), the same for the same seed."""
    if not share:
        return items, []
    count = max(1, round(len(items) * share))
    if count >= len(items):
        raise DataError(f"{len(items)} example(s) are too few to keep {share:.0%} for validation")
    chosen = set(random.Random(seed).sample(range(len(items)), count))
    rest = [item for index, item in enumerate(items) if index not in chosen]
    return rest, [items[index] for index in sorted(chosen)]


def training_order(
    lengths: Sequence[int], num_examples: int, batch_size: int, seed: int
) -> list[int]:
    """Which example comes when, over as many passes as it takes: indices into `lengths`.

    Each pass is shuffled; then every 50 batches' worth is sorted by length and cut into batches, so
    that little is padding, and those batches are shuffled. A pure function of its arguments, so
    that a resumed run goes on where it was.
    """
    rng = random.Random(seed)
    shuffled: list[int] = []
    while len(shuffled) < num_examples:
        shuffled += rng.sample(range(len(lengths)), len(lengths))
    del shuffled[num_examples:]
    order: list[int] = []
    for start in range(0, num_examples, 50 * batch_size):
        similar = sorted(shuffled[start : start + 50 * batch_size], key=lengths.__getitem__)
        batches = [similar[i : i + batch_size] for i in range(0, len(similar), batch_size)]
        rng.shuffle(batches)
        order += [index for batch in batches for index in batch]
    return order


@dataclass(frozen=True)
class Collator:
    """Pads samples to the longest of the batch. Yields int64 tensors of shape (batch, length)."""

    pad_token_id: int

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        length = max(len(sample.input_ids) for sample in samples)

        def pad(rows: Iterable[list[int]], filler: int) -> torch.Tensor:
            return torch.tensor([row + [filler] * (length - len(row)) for row in rows])

        return {
            "input_ids": pad((s.input_ids for s in samples), self.pad_token_id),
            "labels": pad((s.labels for s in samples), IGNORED_LABEL),
            "attention_mask": pad(([1] * len(s.input_ids) for s in samples), 0),
        }
