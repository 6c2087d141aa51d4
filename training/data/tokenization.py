"""Turns conversations into token ids, with loss only on the assistant's answers.

An answer begins where the template's generation prompt ends. It ends where the rendering of the
conversation up to that answer ends. There is no search for an end token, so neither the tokenizer's
name for it nor the text of an answer can confuse this.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from training.data.conversations import Conversation, carries_loss
from training.data.rendering import Renderer
from training.errors import DataError

IGNORED_LABEL = -100
"""The label that `torch.nn.CrossEntropyLoss` skips by default."""

PROBE = "Yes."
"""A short answer that every template renders unchanged."""

MAX_LISTED = 20
"""How many example numbers a message lists. The others are only counted."""


@dataclass(frozen=True)
class Sample:
    """Token ids to learn from. `labels` equals `input_ids` where loss is taken, otherwise -100."""

    input_ids: list[int]
    labels: list[int]

    @property
    def answer_ids(self) -> list[int]:
        """Return the tokens that carry loss."""
        return [label for label in self.labels if label != IGNORED_LABEL]


@dataclass(frozen=True)
class Span:
    """An answer in a rendered text: from the character `start` up to `end`."""

    start: int
    end: int


@dataclass(frozen=True)
class Rendering:
    """A text to learn from, and the spans of its answers."""

    text: str
    spans: list[Span]


def renderings(renderer: Renderer, conversation: Conversation) -> list[Rendering]:
    """Render a conversation to learn from, as one text or as one text for each answer.

    Some templates change earlier answers, for example by removing their reasoning. Then each answer
    is rendered with the prompt that the model will see before it.

    Raises:
        DataError: the template can't render it, or doesn't begin answers with its own generation
            prompt. The message says what to do.
    """
    whole = renderer.render(conversation)
    _check_tools(conversation, whole)
    answers = [i for i, m in enumerate(conversation.messages) if carries_loss(m)]
    single = [render_answer(renderer, conversation, index) for index in answers]
    if all(whole.startswith(one.text[: one.spans[0].end]) for one in single):
        return [Rendering(whole, [one.spans[0] for one in single])]
    return single


def _check_tools(conversation: Conversation, text: str) -> None:
    """Raise `DataError` if the template leaves out the tools or their answers."""
    if not all(tool["function"]["name"] in text for tool in conversation.tools):
        raise DataError("the base's chat template can't render tools: train on another base")
    for message in conversation.messages:
        said = message["content"]
        quoted = json.dumps(said, ensure_ascii=False)
        if message["role"] == "tool" and not (_is_in(said, text) or quoted in text):
            raise DataError(
                "the base's chat template can't render the answers of tools: train on another base"
            )


def render_answer(renderer: Renderer, conversation: Conversation, index: int) -> Rendering:
    """Render a conversation up to the answer that is its message number `index`.

    Raises:
        DataError: as in `renderings`.
    """
    message = conversation.messages[index]
    before = renderer.render(conversation, index, opens_answer=True)
    text = renderer.render(conversation, index + 1)
    calls = message.get("tool_calls", [])
    common = _common_start(before, text)
    is_whole = common == before and (calls or _is_in(message["content"], text))
    if not is_whole:
        opens_turn = len(common) >= len(renderer.render(conversation, index).rstrip())
        opening = before[len(common) :] if opens_turn else ""
        if calls or not message["content"].startswith(opening):
            raise DataError(
                f"this base's chat template opens every answer with {opening!r}: begin the answers "
                "with it, or give another template (--chat-template FILE)"
            )
        text = _answer_as_given(renderer, conversation, index, before)
    # Many templates put a newline after a turn. The model never has to generate it.
    end = max(len(before), len(text.rstrip()))
    if not all(call["function"]["name"] in text[len(before) : end] for call in calls):
        raise DataError("the base's chat template can't render tool calls: train on another base")
    return Rendering(text, [Span(len(before), end)])


def _answer_as_given(
    renderer: Renderer, conversation: Conversation, index: int, before: str
) -> str:
    """Return prompt and answer as text if the template would leave out a part of the answer.

    Templates of reasoning models drop an answer's reasoning, for example. The text that ends the
    turn is taken from the rendering of a short answer.
    """
    content = conversation.messages[index]["content"]
    shortened = [*conversation.messages[:index], {"role": "assistant", "content": PROBE}]
    _, found, ending = renderer.render(replace(conversation, messages=shortened)).rpartition(PROBE)
    if not found:
        raise DataError("the base's chat template leaves out the answers, so none can be learned")
    overlap = next(n for n in range(len(content), -1, -1) if before.endswith(content[:n]))
    return f"{before}{content[overlap:]}{ending}"


def _common_start(one: str, other: str) -> str:
    """Return the common beginning of two texts."""
    pairs = zip(one, other, strict=False)
    return one[: next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))]


def _is_in(part: str, text: str) -> bool:
    """Return whether `text` contains `part`, where blanks and newlines don't count."""
    return "".join(part.split()) in "".join(text.split())


def tokenize(renderer: Renderer, rendering: Rendering) -> Sample:
    """Turn a rendered text into token ids and labels. Only answers have labels.

    A token belongs to an answer if all its characters do.
    """
    ids, offsets = renderer.encode(rendering.text)
    labels = [
        token
        if first < last and any(s.start <= first and last <= s.end for s in rendering.spans)
        else IGNORED_LABEL
        for token, (first, last) in zip(ids, offsets, strict=True)
    ]
    return Sample(ids, labels)


def tokenize_conversation(renderer: Renderer, conversation: Conversation) -> list[Sample]:
    """Return the samples of a conversation: one, or one for each answer (see `renderings`).

    Raises:
        DataError: as in `renderings`.
    """
    return [tokenize(renderer, one) for one in renderings(renderer, conversation)]


def tokenize_last_answer(renderer: Renderer, conversation: Conversation) -> Sample:
    """Return a conversation with loss only on its last answer, as an evaluation needs it.

    Raises:
        DataError: as in `renderings`.
    """
    last = len(conversation.messages) - 1
    return tokenize(renderer, render_answer(renderer, conversation, last))


def tokenize_all(
    renderer: Renderer,
    conversations: Sequence[Conversation],
    max_length: int,
    truncate: bool = False,
) -> list[list[Sample]]:
    """Return each conversation's samples. Those over `max_length` tokens are refused, or cut.

    Raises:
        DataError: some are too long, would lose their whole answer, or can't be rendered. The
            message gives their numbers, counted from 1.
    """
    samples = []
    for number, conversation in enumerate(conversations, start=1):
        try:
            samples.append(tokenize_conversation(renderer, conversation))
        except DataError as error:
            raise DataError(f"example {number}: {error}") from error
    too_long = [
        number
        for number, group in enumerate(samples, start=1)
        if any(len(sample.input_ids) > max_length for sample in group)
    ]
    if too_long and not truncate:
        raise DataError(
            f"{len(too_long)} example(s) are longer than max_length={max_length} tokens: raise "
            f"--max-length, or cut them with --truncate; counted from 1, {_listed(too_long)}"
        )
    cut = [
        [Sample(s.input_ids[:max_length], s.labels[:max_length]) for s in group]
        for group in samples
    ]
    silent = [
        number
        for number, group in enumerate(cut, start=1)
        if any(not sample.answer_ids for sample in group)
    ]
    if silent:
        raise DataError(
            f"{len(silent)} example(s) have no answer within max_length={max_length} tokens: "
            f"counted from 1, {_listed(silent)}"
        )
    return cut


def _listed(numbers: list[int]) -> str:
    more = len(numbers) - MAX_LISTED
    listed = "number " + ", ".join(map(str, numbers[:MAX_LISTED]))
    return listed + (f" and {more:,} more" if more > 0 else "")
