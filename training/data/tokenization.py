"""Conversations as token ids, with the loss on the assistant's answers alone.

An answer begins where the template's generation prompt ends, and ends where the rendering of the
conversation up to that answer ends. No search for an end token is needed, so it doesn't matter what
the tokenizer calls its end token, nor what an answer's own text holds.
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
"""A short answer, which every template renders as it is."""

MAX_LISTED = 20
"""Numbers of examples that a message lists; the others are counted."""


@dataclass(frozen=True)
class Sample:
    """Token ids to learn from; `labels` is `input_ids` where loss is taken, otherwise -100."""

    input_ids: list[int]
    labels: list[int]

    @property
    def answer_ids(self) -> list[int]:
        """The tokens that carry loss."""
        return [label for label in self.labels if label != IGNORED_LABEL]


@dataclass(frozen=True)
class Span:
    """An answer in a rendered text: from the character `start` up to `end`."""

    start: int
    end: int


@dataclass(frozen=True)
class Rendering:
    """A text to learn from, and where its answers stand."""

    text: str
    spans: list[Span]


def renderings(renderer: Renderer, conversation: Conversation) -> list[Rendering]:
    """Render a conversation to learn from: as one text, or as one text for each answer.

    The second is needed where a template shows earlier answers otherwise than they were given, for
    example without their reasoning. Each answer then stands behind what the model will see.

    Raises:
        DataError: the template can't render it, or begins answers in another way than it asks for
            them; says what to do.
    """
    whole = renderer.render(conversation)
    _check_tools(conversation, whole)
    answers = [i for i, m in enumerate(conversation.messages) if carries_loss(m)]
    single = [render_answer(renderer, conversation, index) for index in answers]
    if all(whole.startswith(one.text[: one.spans[0].end]) for one in single):
        return [Rendering(whole, [one.spans[0] for one in single])]
    return single


def _check_tools(conversation: Conversation, text: str) -> None:
    """Refuse a template that leaves out the tools, or what they said."""
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
        DataError: as `renderings`.
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
    # Behind the end of a turn many templates put a newline, which the model is never asked for.
    end = max(len(before), len(text.rstrip()))
    if not all(call["function"]["name"] in text[len(before) : end] for call in calls):
        raise DataError("the base's chat template can't render tool calls: train on another base")
    return Rendering(text, [Span(len(before), end)])


def _answer_as_given(
    renderer: Renderer, conversation: Conversation, index: int, before: str
) -> str:
    """Return an answer behind its prompt where the template would leave out a part of it.

    Templates of reasoning models drop an answer's reasoning. The end of the turn is taken from the
    rendering of a short answer.
    """
    content = conversation.messages[index]["content"]
    shortened = [*conversation.messages[:index], {"role": "assistant", "content": PROBE}]
    _, found, ending = renderer.render(replace(conversation, messages=shortened)).rpartition(PROBE)
    if not found:
        raise DataError("the base's chat template leaves out the answers, so none can be learned")
    overlap = next(n for n in range(len(content), -1, -1) if before.endswith(content[:n]))
    return f"{before}{content[overlap:]}{ending}"


def _common_start(one: str, other: str) -> str:
    """Return what both texts begin with."""
    pairs = zip(one, other, strict=False)
    return one[: next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))]


def _is_in(part: str, text: str) -> bool:
    """Whether a text holds another, blanks and newlines aside."""
    return "".join(part.split()) in "".join(text.split())


def tokenize(renderer: Renderer, rendering: Rendering) -> Sample:
    """Turn a rendered text into token ids and labels; only answers have labels.

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
        DataError: as `renderings`.
    """
    return [tokenize(renderer, one) for one in renderings(renderer, conversation)]


def tokenize_last_answer(renderer: Renderer, conversation: Conversation) -> Sample:
    """Return the conversation with loss on its last answer alone, as an evaluation wants it.

    Raises:
        DataError: as `renderings`.
    """
    last = len(conversation.messages) - 1
    return tokenize(renderer, render_answer(renderer, conversation, last))


def tokenize_all(
    renderer: Renderer,
    conversations: Sequence[Conversation],
    max_length: int,
    truncate: bool = False,
) -> list[list[Sample]]:
    """Return each conversation's samples; those over `max_length` tokens are refused, or cut.

    Raises:
        DataError: some are too long, would lose their whole answer, or can't be rendered; says
            which, counted from 1.
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
