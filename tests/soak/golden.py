"""Golden answers by content and prompt, and how far another answer is from one. Pure."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from loadtest.outcome.golden import GoldenAnswer
from loadtest.outcome.streams import Token

GOLDEN_TOKENS = 6
"""The length of golden answers. Longer answers are compared as far."""
TOLERANCE = 0.5
"""In nats. Right answers differ by less from the golden ones, which are computed in float32 and not
in the batches of the engine; the report says by how much. Other contents' differ by more, but for
the pairs that the report counts."""
LEAST_LIKELY = -3.0
"""Tokens that are less likely for both aren't compared: BF16 moves them by more than a nat."""
UNLISTED = 25.0
"""The distance of a token that isn't among the likeliest ones."""

Answers = dict[str, dict[int, GoldenAnswer]]


def distance(golden: GoldenAnswer, answer: GoldenAnswer) -> float:
    """Return the largest difference of log-probabilities over the likeliest tokens, in nats.

    Tokens are compared up to the first that differs, and there, too: near ties may end either way.
    """
    largest = 0.0
    for ours, theirs in zip(golden.tokens, answer.tokens, strict=False):
        if theirs.text not in ours.likeliest:
            return UNLISTED
        both = ours.likeliest.keys() & theirs.likeliest.keys()
        pairs = [(ours.likeliest[text], theirs.likeliest[text]) for text in both]
        gaps = (abs(one - other) for one, other in pairs if max(one, other) > LEAST_LIKELY)
        tie = ours.logprob - ours.likeliest[theirs.text]
        largest = max(largest, tie, *gaps)
        if ours.text != theirs.text:
            break
    return largest


@dataclass
class GoldenAnswers:
    """What each content answers to each golden prompt."""

    answers: Answers = field(default_factory=dict)

    def add(self, content: str, prompt: int, answer: GoldenAnswer) -> None:
        """Keep an answer."""
        self.answers.setdefault(content, {})[prompt] = answer

    def of(self, content: str, prompt: int) -> GoldenAnswer | None:
        """Return a content's answer, or None if it isn't known."""
        return self.answers.get(content, {}).get(prompt)

    def like(self, prompt: int, answer: GoldenAnswer) -> Iterator[str]:
        """Yield the contents whose golden answer it may be."""
        for content, by_prompt in self.answers.items():
            golden = by_prompt.get(prompt)
            if golden and distance(golden, answer) <= TOLERANCE:
                yield content

    def num_blind(self) -> tuple[int, int]:
        """Return how many pairs of contents can't be told apart, and how many pairs there are."""
        by_prompt: dict[int, list[GoldenAnswer]] = {}
        for answers in self.answers.values():
            for prompt, answer in answers.items():
                by_prompt.setdefault(prompt, []).append(answer)
        pairs = [p for same in by_prompt.values() for p in itertools.combinations(same, 2)]
        return sum(distance(one, other) <= TOLERANCE for one, other in pairs), len(pairs)

    def read(self, file: Path, made: list[Any]) -> None:
        """Take over the answers in a file, if they were made in the same way."""
        kept = json.loads(file.read_text()) if file.exists() else {}
        if kept.get("made") != made:
            return
        for content, answers in kept["answers"].items():
            for prompt, (text, tokens) in answers.items():
                answer = GoldenAnswer(text, tuple(Token(*token) for token in tokens))
                self.add(content, int(prompt), answer)

    def write(self, file: Path, made: list[Any]) -> None:
        """Keep the answers in a file."""
        answers = {
            content: {prompt: [a.text, [astuple(t) for t in a.tokens]] for prompt, a in by.items()}
            for content, by in self.answers.items()
        }
        file.write_text(json.dumps({"made": made, "answers": answers}))
