"""How far two candidates are apart: by their log-probabilities of built-in texts."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean

from training.data.tokenization import IGNORED_LABEL, Sample
from training.evaluation.candidates import Candidate
from training.models.base_model import load_tokenizer

PROBES = (
    "The lighthouse keeper climbed the stairs, lit the lamp, and looked for the boats.",
    "Water boils at a lower temperature on a mountain, because the air presses less on it.",
    "Question: Which planet is nearest to the sun? Answer: Mercury, which has no moons.",
    "def mean(values):\n    return sum(values) / len(values)\n\nprint(mean([1, 2, 6]))\n",
    '{"name": "Ada", "born": 1815, "languages": ["English", "French"], "active": false}',
    "Dear Ms Jones, your order has been sent and should arrive on Thursday. Kind regards",
    "Der Zug nach Hamburg fährt heute von Gleis sieben und kommt zehn Minuten später an.",
    "If 3 pencils cost 45 cents, then 1 pencil costs 15 cents, and 8 pencils cost 120 cents.",
)
"""Plain texts of several kinds, so that they say something whatever an adapter was trained for."""


@dataclass(frozen=True)
class LogprobDifference:
    """How far the log-probabilities of the texts' tokens are apart, in nats."""

    num_tokens: int
    mean: float
    """The mean of the absolute differences."""
    largest: float


def compare_on_probes(one: Candidate, other: Candidate, base: Path) -> LogprobDifference:
    """Return how far two candidates are apart. `base` provides the tokenizer.

    Raises:
        TrainingError: a candidate cannot answer.
    """
    samples = probe_samples(base)
    first, second = (list(chain.from_iterable(each.logprobs(samples))) for each in (one, other))
    gaps = [abs(a - b) for a, b in zip(first, second, strict=True)]
    return LogprobDifference(len(gaps), fmean(gaps), max(gaps))


def probe_samples(base: Path) -> list[Sample]:
    """Return the texts as tokens. All count but the first of each, which nothing comes before."""
    rows: list[list[int]] = load_tokenizer(base)(list(PROBES))["input_ids"]
    return [Sample(row, [IGNORED_LABEL, *row[1:]]) for row in rows]
