"""What answers are worth, example by example: the field's own metrics, by the field's libraries."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

METRICS = ("exact_match", "rouge_l", "bleu", "json_valid", "loss")
"""Means over examples in [0, 1], but `loss`: nats a token, lower is better."""
NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Scores:
    """What one candidate scored: for each metric one number an example, in the data's order."""

    values: dict[str, list[float]]
    num_tokens: list[int] = field(default_factory=list)
    """The answers' lengths, which weigh the losses."""

    def mean(self, metric: str, rows: Sequence[int] | None = None) -> float:
        """The metric over all examples, or over these, repeated ones counted again."""
        chosen = slice(None) if rows is None else rows
        values = np.asarray(self.values[metric])[chosen]
        weights = np.asarray(self.num_tokens)[chosen] if metric == "loss" else None
        return float(np.average(values, weights=weights))

    def summary(self) -> dict[str, float]:
        """Every metric's mean, and the perplexity."""
        means = {metric: round(self.mean(metric), 4) for metric in METRICS if metric in self.values}
        if "loss" in means:
            means["perplexity"] = round(math.exp(min(self.mean("loss"), 700)), 4)
        return means


@dataclass(frozen=True)
class Difference:
    """A candidate's mean minus another's, and its 95 % interval over the same examples."""

    mean: float
    low: float
    high: float

    @property
    def is_significant(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def score_answers(answers: Sequence[str], expected: Sequence[str]) -> dict[str, list[float]]:
    """Exact match, ROUGE-L's F, sentence BLEU in [0, 1]; JSON validity if all expected are JSON.

    ROUGE-L: Lin, 2004; BLEU: Papineni et al., 2002, as sacrebleu computes it for a sentence.
    """
    pairs = list(zip(answers, expected, strict=True))
    values = {
        "exact_match": [float(given == right) for given, right in pairs],
        "rouge_l": [_rouge().score(right, given)["rougeL"].fmeasure for given, right in pairs],
        "bleu": [_bleu().sentence_score(given, [right]).score / 100 for given, right in pairs],
    }
    if all(_is_json(right) for right in expected):
        values["json_valid"] = [float(_is_json(given)) for given, _ in pairs]
    return values


def paired_difference(candidate: Scores, other: Scores, metric: str) -> Difference:
    """The difference of two means by the paired bootstrap (Koehn, 2004): resampled examples."""
    return difference_of_runs([candidate], [other], metric)


def difference_of_runs(
    candidate: Sequence[Scores], other: Sequence[Scores], metric: str, seed: int = 0
) -> Difference:
    """The same between means over runs with several seeds, which are resampled, too.

    An interval over the examples alone takes the luck of a seed for the method's merit. With few
    seeds this one is still somewhat narrow: a bootstrap of three has two thirds of their variance.
    """
    rng = np.random.default_rng(seed)
    count = len(candidate[0].values[metric])
    differences = []
    for rows in rng.integers(0, count, (NUM_RESAMPLES, count)):
        ours, theirs = (
            np.mean([runs[i].mean(metric, rows) for i in rng.integers(0, len(runs), len(runs))])
            for runs in (candidate, other)
        )
        differences.append(ours - theirs)
    low, high = np.quantile(differences, [0.025, 0.975])
    mean = np.mean([run.mean(metric) for run in candidate]) - np.mean(
        [run.mean(metric) for run in other]
    )
    return Difference(round(float(mean), 4), round(float(low), 4), round(float(high), 4))


def _is_json(text: str) -> bool:
    """Whether it is a JSON object or array: a bare number or word says nothing of a format."""
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"])


@cache
def _bleu() -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)
