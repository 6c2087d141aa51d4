"""The arms of a comparison. Each is a method, at a rank, on a set of modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from training.data.recipe import METHODS, Recipe
from training.errors import TrainingError

PROMPT = "prompt only"


@dataclass(frozen=True)
class Arm:
    """One way to solve the task: a recipe, or None for the base with examples in its prompt."""

    name: str
    recipe: Recipe | None


def make_arms(
    recipe: Recipe, methods: Sequence[str], ranks: Sequence[int], targets: Sequence[str]
) -> list[Arm]:
    """Return the arms: the prompt, full training, and each other method at each rank and targets.

    Raises:
        TrainingError: a method doesn't exist.
    """
    arms = [Arm(PROMPT, None)]
    for method in methods:
        if method not in METHODS:
            raise TrainingError(f"--method must be one of {', '.join(METHODS)}, not {method}")
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
