"""The experiment that decides: prompt alone, LoRA, QLoRA, full, on one's own data.

Each arm searches its own learning rate on a development split, then runs with every seed and is
scored on what was held out. A comparison that was killed goes on where it was.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from training.comparison.trial import Result, run_trial
from training.data.conversations import Conversation, split_off, write_conversations
from training.data.recipe import LEARNING_RATES, METHODS, Recipe
from training.errors import TrainingError
from training.evaluation.scores import Difference, Scores, difference_of_runs

PROMPT = "prompt only"
RATE_FACTORS = (1 / 3, 1.0, 3.0)
"""The rates that are searched, times the method's default."""
DEV_SHARE = 0.1
MAX_DEV = 64
NUM_SHOTS = 4
PROBE_STEPS = 4


@dataclass(frozen=True)
class Arm:
    """One way of doing it: a name and a recipe, None for the base with examples in its prompt."""

    name: str
    recipe: Recipe | None


@dataclass
class Row:
    """What an arm came to. Metrics are means over seeds; memory in MiB."""

    name: str
    method: str
    learning_rate: float | None
    runs: list[Scores]
    """Of each seed."""
    peak_memory_mib: float = 0
    seconds_per_step: float = 0
    train_seconds: float = 0
    num_trainable: int = 0
    artefact_bytes: int = 0
    rate_is_at_edge: bool = False
    """Whether it was the lowest or highest that was tried: another may be better."""
    validation: list[list[float]] = field(default_factory=list)
    """Seconds of training and validation loss, of the first seed."""

    @property
    def scores(self) -> Scores:
        """Of each held-out example, the mean over seeds."""
        first = self.runs[0]
        values = {
            metric: np.mean([run.values[metric] for run in self.runs], axis=0).tolist()
            for metric in first.values
        }
        return Scores(values, first.num_tokens)

    def by_seed(self, metric: str) -> list[float]:
        """A metric's mean of each run."""
        return [run.mean(metric) for run in self.runs]

    def spread(self, metric: str) -> float:
        """Standard deviation over seeds."""
        return statistics.stdev(self.by_seed(metric)) if len(self.runs) > 1 else 0.0


@dataclass(frozen=True)
class Comparison:
    """All rows, on which metric, and the paired differences between each and the best."""

    metric: str
    num_examples: int
    num_seeds: int
    rows: list[Row]
    behind_best: dict[str, Difference]
    best: str


def make_arms(
    recipe: Recipe, methods: Sequence[str], ranks: Sequence[int], targets: Sequence[str]
) -> list[Arm]:
    """The prompt, and each method; the adapters' at each rank and with each set of targets.

    Raises:
        TrainingError: there is no such method.
    """
    arms = [Arm(PROMPT, None)]
    for method in methods:
        if method not in METHODS:
            raise TrainingError(f"--method is {', '.join(METHODS)}; not {method}")
        if method == "full":
            arms.append(Arm("full", replace(recipe, method="full")))
            continue
        for rank in ranks or [recipe.rank]:
            for chosen in targets or [",".join(recipe.targets)]:
                name = f"{method} r={rank}" + (f" {chosen}" if len(targets) > 1 else "")
                scaled = round(rank * recipe.alpha / recipe.rank)
                changed = replace(
                    recipe,
                    method=method,
                    rank=rank,
                    alpha=max(1, scaled),
                    targets=tuple(chosen.split(",")),
                )
                arms.append(Arm(name, changed))
    return arms


def compare(
    base: Path,
    train: list[Conversation],
    test: list[Conversation],
    arms: Sequence[Arm],
    out: Path,
    *,
    metric: str = "exact_match",
    seeds: Sequence[int] = (0, 1, 2),
    rate_factors: Sequence[float] = RATE_FACTORS,
    minutes: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Run every arm; each trial's files stay in `out`, and are taken from there when repeated.

    With `minutes` each arm has as many steps as fit into that time, else all have the recipe's.

    Raises:
        TrainingError: a trial can't be run.
    """
    if not test:
        raise TrainingError("nothing is held out to compare on: give --test")
    share = min(DEV_SHARE, MAX_DEV / len(train))
    rest, dev = split_off(train, share, seed=0)
    out.mkdir(parents=True, exist_ok=True)
    files = {name: out / f"{name}.jsonl" for name in ("train", "dev", "test", "prompted")}
    prompted = [[turn for shot in rest[:NUM_SHOTS] for turn in shot] + chat for chat in test]
    for name, chats in zip(files, (rest, dev, test, prompted), strict=True):
        write_conversations(files[name], chats)

    def trial(name: str, recipe: Recipe | None, score_on: str) -> Result:
        if progress:
            progress(name)
        values = asdict(recipe) if recipe else {}
        directory = out / "trials" / name.replace(" ", "-").replace("=", "")
        return run_trial(directory, base, values, files["train"], files[score_on])

    rows = []
    for arm in arms:
        if arm.recipe is None:
            rows.append(Row(arm.name, "", None, [trial(arm.name, None, "prompted").scores]))
            continue
        recipe = _with_steps(arm, minutes, trial)
        rates = [LEARNING_RATES[recipe.method] * factor for factor in rate_factors]
        rate = _best_rate(arm.name, recipe, rates, metric, trial)
        results = [
            trial(f"{arm.name} seed{seed}", replace(recipe, learning_rate=rate, seed=seed), "test")
            for seed in seeds
        ]
        row = _row(arm.name, recipe.method, rate, results)
        row.rate_is_at_edge = len(rates) > 1 and rate in (min(rates), max(rates))
        rows.append(row)
    return summarise(rows, metric, len(test), len(seeds))


def _with_steps(arm: Arm, minutes: float | None, trial: Callable[..., Result]) -> Recipe:
    assert arm.recipe is not None
    if minutes is None:
        return arm.recipe
    probe = replace(arm.recipe, num_steps=PROBE_STEPS, validation_share=0, patience=0)
    speed = trial(f"{arm.name} probe", probe, "dev").seconds_per_step
    return replace(arm.recipe, num_steps=max(1, round(minutes * 60 / speed)))


def _best_rate(
    name: str, recipe: Recipe, rates: list[float], metric: str, trial: Callable[..., Result]
) -> float:
    """The rate of the best score on the development split; of equals that of the least loss."""
    if len(rates) == 1:
        return rates[0]
    tried: dict[float, tuple[float, float]] = {}
    for rate in rates:
        scores = trial(f"{name} rate{rate:.2g}", replace(recipe, learning_rate=rate), "dev").scores
        sign = -1 if metric == "loss" else 1
        tried[rate] = (sign * scores.mean(metric), -scores.mean("loss"))
    return max(tried, key=tried.__getitem__)


def _row(name: str, method: str, rate: float, results: list[Result]) -> Row:
    records: list[dict[str, Any]] = [result.record for result in results]
    first = records[0]
    pace = first["train_seconds"] / max(1, first["num_steps_run"])
    return Row(
        name,
        method,
        rate,
        [result.scores for result in results],
        peak_memory_mib=statistics.mean(record["peak_memory_mib"] for record in records),
        seconds_per_step=statistics.mean(result.seconds_per_step for result in results),
        train_seconds=statistics.mean(record["train_seconds"] for record in records),
        num_trainable=first["num_trainable"],
        artefact_bytes=results[0].artefact_bytes,
        validation=[[step * pace, loss] for step, loss in first["validation_loss"]],
    )


def summarise(rows: list[Row], metric: str, num_examples: int, num_seeds: int) -> Comparison:
    """Who is best, and how far behind it each other is, over the same examples and any seeds."""
    sign = -1 if metric == "loss" else 1
    best = max(rows, key=lambda row: sign * row.scores.mean(metric))
    behind = {
        row.name: difference_of_runs(best.runs, row.runs, metric) for row in rows if row is not best
    }
    return Comparison(metric, num_examples, num_seeds, rows, behind, best.name)


def seconds_to_target(row: Row, target_loss: float) -> float | None:
    """How long the arm trained until its validation loss was this low; None: it never was."""
    return next((seconds for seconds, loss in row.validation if loss <= target_loss), None)


def recommendation(comparison: Comparison, margin: float = 0.01) -> str:
    """The least effort that is as good: nothing better by a significant difference over `margin`.

    Effort, from the least: a prompt, LoRA, QLoRA (its base must be rounded for serving), full (a
    base for itself); of the same method the one with fewer trained parameters.
    """
    effort = {"": 0, "lora": 1, "qlora": 2, "full": 3}
    rows = sorted(comparison.rows, key=lambda row: (effort[row.method], row.num_trainable))
    by_name = {row.name: row for row in rows}
    best = by_name[comparison.best]
    chosen = next(row for row in rows if _is_as_good(row, comparison, margin))
    if chosen is best:
        return f"take {chosen.name}: nothing with less effort is as good"
    gap = comparison.behind_best[chosen.name]
    half = 100 * (gap.high - gap.low) / 2
    verdict = "significant" if gap.is_significant else "not significant"
    text = (
        f"stay with {chosen.name}: {best.name} is {100 * abs(gap.mean):.1f} ± {half:.1f} points "
        f"better in {comparison.metric}, {verdict}"
    )
    if chosen.peak_memory_mib and best.peak_memory_mib:
        text += f", at {best.peak_memory_mib / chosen.peak_memory_mib:.1f} × the memory"
    return text


def caveats(comparison: Comparison) -> list[str]:
    """What speaks against taking the table as it is, a line each."""
    return [
        f"{row.name}: {row.learning_rate:.2g} is at the edge of the rates that were tried; repeat "
        "with more of --rate, as factors of the method's own"
        for row in comparison.rows
        if row.rate_is_at_edge
    ]


def _is_as_good(row: Row, comparison: Comparison, margin: float) -> bool:
    if row.name == comparison.best:
        return True
    gap = comparison.behind_best[row.name]
    return not gap.is_significant or abs(gap.mean) <= margin


def to_json(comparison: Comparison) -> str:
    """Everything but the single examples' scores."""
    rows = []
    for row in comparison.rows:
        facts = asdict(replace(row, runs=[]))
        del facts["runs"]
        facts |= {"scores": row.scores.summary(), "by_seed": row.by_seed(comparison.metric)}
        rows.append(facts)
    facts = asdict(replace(comparison, rows=[])) | {"rows": rows}
    facts |= {"recommendation": recommendation(comparison), "caveats": caveats(comparison)}
    return json.dumps(facts, indent=1)
