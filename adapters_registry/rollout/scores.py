"""Computes metrics of answers for each example, with the usual libraries."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

METRICS = ("exact_match", "rouge_l", "bleu", "json_valid", "loss")
"""All are means over examples in [0, 1], except `loss`, in nats for each token: lower is better."""
NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Scores:
    """A candidate's scores: for each metric one number for each example, in the data's order."""

    values: dict[str, list[float]]
    num_tokens: list[int] = field(default_factory=list)
    """The lengths of the right answers in tokens. Losses are weighted by them."""

    def mean(self, metric: str, rows: Sequence[int] | None = None) -> float:
        """Return the metric's mean over all examples, or over `rows`, which may repeat."""
        chosen = slice(None) if rows is None else rows
        values = np.asarray(self.values[metric])[chosen]
        weights = np.asarray(self.num_tokens)[chosen] if metric == "loss" else None
        return float(np.average(values, weights=weights))

    def summary(self) -> dict[str, float]:
        """Return the mean of every metric, and the perplexity."""
        means = {metric: round(self.mean(metric), 4) for metric in METRICS if metric in self.values}
        if "loss" in means:
            means["perplexity"] = round(math.exp(min(self.mean("loss"), 700)), 4)
        return means


@dataclass(frozen=True)
class Difference:
    """A candidate's mean minus another's on the same examples, with a 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def is_significant(self) -> bool:
        """Return whether zero lies outside the interval."""
        return self.low > 0 or self.high < 0


def score_answers(answers: Sequence[str], expected: Sequence[str]) -> dict[str, list[float]]:
    """Return exact match, ROUGE-L's F and sentence BLEU of each answer.

    JSON validity is added if all expected answers are JSON. ROUGE-L is by Lin, 2004. BLEU is by
    Papineni et al., 2002, as sacrebleu computes it for a sentence.
    """
    pairs = list(zip(answers, expected, strict=True))
    values = {
        "exact_match": [float(given == right) for given, right in pairs],
        "rouge_l": [_rouge().score(right, given)["rougeL"].fmeasure for given, right in pairs],
        "bleu": [_bleu().sentence_score(given, [right]).score / 100 for given, right in pairs],
    }
    if all(is_json(right) for right in expected):
        values["json_valid"] = [float(is_json(given)) for given, _ in pairs]
    return values


def paired_difference(candidate: Scores, other: Scores, metric: str) -> Difference:
    """Return the difference of two means, by the paired bootstrap over examples (Koehn, 2004)."""
    return difference_of_runs([candidate], [other], metric)


def difference_of_runs(
    candidate: Sequence[Scores], other: Sequence[Scores], metric: str, seed: int = 0
) -> Difference:
    """Return the difference of two means over runs with several seeds.

    Both examples and seeds are resampled. If only examples were, a lucky seed would look like a
    better method. With few seeds the interval is still somewhat too narrow: a bootstrap of three
    values has two thirds of their variance.
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


def is_json(text: str) -> bool:
    """Return whether a text is a JSON object or array. A number or a string doesn't count."""
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
