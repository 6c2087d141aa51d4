"""Describes a data set before training: counts, lengths, and the parts that carry loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from training.data.conversations import Conversation, carries_loss
from training.data.reading import Data
from training.data.rendering import Renderer
from training.data.special_tokens import special_tokens_in
from training.data.splitting import num_duplicates, prompt_of
from training.data.tokenization import Rendering, renderings, tokenize
from training.errors import DataError


@dataclass(frozen=True)
class Lengths:
    """How many tokens the examples have."""

    shortest: int
    median: int
    p95: int
    longest: int

    @classmethod
    def of(cls, numbers: Sequence[int]) -> Lengths:
        """Return the lengths of at least one number."""
        median, p95 = np.quantile(numbers, [0.5, 0.95], method="inverted_cdf")
        return cls(min(numbers), int(median), int(p95), max(numbers))


@dataclass(frozen=True)
class Segment:
    """A part of a rendered example, and whether the model learns it."""

    text: str
    is_learned: bool


@dataclass
class Inspection:
    """What `loraplex data inspect` shows. Lengths are in tokens of the base's tokenizer."""

    form: str
    formats: dict[str, int]
    unused_fields: dict[str, int]
    num_examples: int
    num_bad: int
    num_duplicates: int
    num_prompts: int
    """Number of different prompts, where blanks and case don't count."""
    num_with_tools: int
    num_turns: int
    """Number of answers that carry loss."""
    num_unlearned: int
    """Number of answers with the weight 0."""
    special_tokens: str = ""
    unrenderable: dict[str, int] = field(default_factory=dict)
    """Why the base's chat template can't render examples, and how many for each reason."""
    lengths: Lengths | None = None
    answer_lengths: Lengths | None = None
    num_too_long: int = 0
    examples: list[list[Segment]] = field(default_factory=list)


def inspect_data(
    data: Data, renderer: Renderer, max_length: int, num_examples: int = 3
) -> Inspection:
    """Count, measure and render a data set. The first `num_examples` examples are kept whole."""
    conversations = data.conversations
    answers = [m for c in conversations for m in c.messages if m["role"] == "assistant"]
    special = special_tokens_in(renderer.tokenizer, conversations)
    found = Inspection(
        form=data.form,
        formats=dict(data.formats),
        unused_fields=dict(data.unused),
        num_examples=len(conversations),
        num_bad=len(data.bad),
        num_duplicates=num_duplicates(conversations),
        num_prompts=len({prompt_of(conversation) for conversation in conversations}),
        num_with_tools=sum(_has_tools(conversation) for conversation in conversations),
        num_turns=sum(map(carries_loss, answers)),
        num_unlearned=sum(not carries_loss(answer) for answer in answers),
        special_tokens=str(special) if special.num_examples else "",
    )
    _measure(found, conversations, renderer, max_length, num_examples)
    return found


def _measure(
    found: Inspection,
    conversations: Sequence[Conversation],
    renderer: Renderer,
    max_length: int,
    num_examples: int,
) -> None:
    """Render and tokenise every example."""
    faults: Counter[str] = Counter()
    lengths, answer_lengths = [], []
    for conversation in conversations:
        try:
            texts = renderings(renderer, conversation)
        except DataError as error:
            faults[str(error)] += 1
            continue
        samples = [tokenize(renderer, text) for text in texts]
        lengths.append(max(len(sample.input_ids) for sample in samples))
        answer_lengths.append(sum(len(sample.answer_ids) for sample in samples))
        if len(found.examples) < num_examples:
            found.examples.append([part for text in texts for part in segments(text)])
    found.unrenderable = dict(faults.most_common())
    if lengths:
        found.lengths, found.answer_lengths = Lengths.of(lengths), Lengths.of(answer_lengths)
    found.num_too_long = sum(length > max_length for length in lengths)


def segments(rendering: Rendering) -> list[Segment]:
    """Cut a rendered text at the borders of its answers."""
    parts, place = [], 0
    for span in rendering.spans:
        parts.append(Segment(rendering.text[place : span.start], is_learned=False))
        parts.append(Segment(rendering.text[span.start : span.end], is_learned=True))
        place = span.end
    parts.append(Segment(rendering.text[place:], is_learned=False))
    return [part for part in parts if part.text]


def _has_tools(conversation: Conversation) -> bool:
    return bool(conversation.tools) or any("tool_calls" in m for m in conversation.messages)
