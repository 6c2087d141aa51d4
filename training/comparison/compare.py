"""Runs a comparison of methods on the user's own data: prompt only, LoRA, QLoRA, full training.

Each arm searches its own learning rate on a development split, then runs with every seed and is
scored on the held-out examples. A comparison that was killed continues where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from training.comparison.arms import Arm
from training.comparison.results import Comparison, Row, make_row, summarise
from training.comparison.trial import Result, run_trial
from training.data.conversations import Conversation
from training.data.reading import write_conversations
from training.data.recipe import LEARNING_RATES, Recipe
from training.data.splitting import split_off
from training.errors import TrainingError

RATE_FACTORS = (1 / 3, 1.0, 3.0)
"""The learning rates to try, as factors of the method's default."""
DEV_SHARE = 0.1
MAX_DEV = 64
NUM_SHOTS = 4
"""Number of examples in the prompt of the arm that isn't trained."""
PROBE_STEPS = 4

RunTrial = Callable[[str, Recipe | None, str], Result]
"""Runs a trial, given its name, its recipe (None for the untrained base) and the split to score."""


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
    """Run every arm. The results of trials are kept in `out`, and a repeated call reuses them.

    With `minutes` each arm runs as many steps as fit into that time. Otherwise it runs its recipe's
    steps. `progress` is called with the name of each trial before it begins.

    Raises:
        TrainingError: there are no test examples, or a trial can't be run.
    """
    if not test:
        raise TrainingError("nothing is held out to compare on: give --test")
    share = min(DEV_SHARE, MAX_DEV / len(train))
    rest, dev = split_off(train, share, seed=0)
    out.mkdir(parents=True, exist_ok=True)
    files = {name: out / f"{name}.jsonl" for name in ("train", "dev", "test", "prompted")}
    shots = [message for shot in rest[:NUM_SHOTS] for message in shot.messages]
    prompted = [replace(chat, messages=[*shots, *chat.messages]) for chat in test]
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
        recipe = _with_steps(arm.name, arm.recipe, minutes, trial)
        rates = [LEARNING_RATES[recipe.method] * factor for factor in rate_factors]
        rate = _best_rate(arm.name, recipe, rates, metric, trial)
        results = [
            trial(f"{arm.name} seed{seed}", replace(recipe, learning_rate=rate, seed=seed), "test")
            for seed in seeds
        ]
        row = make_row(arm.name, recipe.method, rate, results)
        row.rate_is_at_edge = len(rates) > 1 and rate in (min(rates), max(rates))
        rows.append(row)
    return summarise(rows, metric, len(test), len(seeds))


def _with_steps(name: str, recipe: Recipe, minutes: float | None, trial: RunTrial) -> Recipe:
    """Return the recipe with as many steps as fit into the time, if a time is given."""
    if minutes is None:
        return recipe
    probe = replace(recipe, num_steps=PROBE_STEPS, validation_share=0, patience=0)
    speed = trial(f"{name} probe", probe, "dev").seconds_per_step
    return replace(recipe, num_steps=max(1, round(minutes * 60 / speed)))


def _best_rate(
    name: str, recipe: Recipe, rates: list[float], metric: str, trial: RunTrial
) -> float:
    """Return the rate with the best score on the development split, or the least loss if equal."""
    if len(rates) == 1:
        return rates[0]
    tried: dict[float, tuple[float, float]] = {}
    for rate in rates:
        scores = trial(f"{name} rate{rate:.2g}", replace(recipe, learning_rate=rate), "dev").scores
        sign = -1 if metric == "loss" else 1
        tried[rate] = (sign * scores.mean(metric), -scores.mean("loss"))
    return max(tried, key=tried.__getitem__)
