"""Golden answers by content and prompt, and how far another answer is from one. Pure."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from loadtest.outcome.golden import GoldenAnswer
from loadtest.outcome.streams import Token

GOLDEN_TOKENS = 6
"""The length of golden answers. Longer answers are compared as far."""
TOLERANCE = 0.3
"""In nats, on average. Golden answers are computed in float32, and the engine computes in BF16.

Transformers in BF16, with the adapter's product rounded at four points or at none, differs by up to
0.16 from its own float32 for 112 contents. Of all pairs of contents two in a hundred differ by less
than 0.3. The report counts them. The largest difference is no measure: it is 0.9 for rounding, too.
"""
SHORT_TOKENS, SHORT_TOLERANCE = 3, 0.6
"""An answer of fewer tokens has few differences, so its average moves more: here by up to 0.41."""
FURTHEST = 0.6
"""Rounding moves about one content in some hundreds by more than `TOLERANCE`, whichever kernels
compute it: here one of 500 by 0.37. An answer up to this far is still its content's if no other
content's is nearer, which was 0.82 off there."""
LEAST_LIKELY = -3.0
"""Tokens that are less likely for both aren't compared: BF16 moves them by more than a nat."""
TIE = 1.0
"""In nats. Two tokens that are less apart may change places. BF16 does it over up to 0.5."""
UNLISTED = 25.0
"""The distance of a token that isn't among the likeliest ones."""

Answers = dict[str, dict[int, GoldenAnswer]]


def distance(golden: GoldenAnswer, answer: GoldenAnswer) -> float:
    """Return the average difference of log-probabilities over the likeliest tokens, in nats.

    Tokens are compared up to the first that differs, and there, too: near ties may end either way.
    """
    gaps: list[float] = []
    for ours, theirs in zip(golden.tokens, answer.tokens, strict=False):
        if ours.logprob - ours.likeliest.get(theirs.text, -UNLISTED) > TIE:
            return UNLISTED
        both = ours.likeliest.keys() & theirs.likeliest.keys()
        pairs = [(ours.likeliest[text], theirs.likeliest[text]) for text in both]
        gaps += [abs(one - other) for one, other in pairs if max(one, other) > LEAST_LIKELY]
        if ours.text != theirs.text:
            break
    return fmean(gaps) if gaps else 0.0


def is_like(golden: GoldenAnswer, answer: GoldenAnswer) -> bool:
    """Return whether an answer, which may be a part of one, differs by no more than rounding."""
    is_short = len(answer.tokens) < SHORT_TOKENS
    return distance(golden, answer) <= (SHORT_TOLERANCE if is_short else TOLERANCE)


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

    def is_nearest(self, content: str, prompt: int, answer: GoldenAnswer) -> bool:
        """Return whether an answer is too far from all golden answers but its content's own."""
        own = distance(self.answers[content][prompt], answer)
        return own <= FURTHEST and all(
            other == content or prompt not in by_prompt or distance(by_prompt[prompt], answer) > own
            for other, by_prompt in self.answers.items()
        )

    def like(self, prompt: int, answer: GoldenAnswer) -> Iterator[str]:
        """Yield the contents whose golden answer it may be."""
        for content, by_prompt in self.answers.items():
            golden = by_prompt.get(prompt)
            if golden and is_like(golden, answer):
                yield content

    def num_blind(self) -> tuple[int, int]:
        """Return how many pairs of contents can't be told apart, and how many pairs there are."""
        by_prompt: dict[int, list[GoldenAnswer]] = {}
        for answers in self.answers.values():
            for prompt, answer in answers.items():
                by_prompt.setdefault(prompt, []).append(answer)
        pairs = [p for same in by_prompt.values() for p in itertools.combinations(same, 2)]
        return sum(is_like(one, other) for one, other in pairs), len(pairs)

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
