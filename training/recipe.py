"""What to train and how: a recipe is a TOML file, and each of its fields is a flag of `train`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from training.datasets import Split, load_dataset
from training.errors import TrainingError

RECIPES_DIR = Path(__file__).parent / "recipes"

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Recipe:
    """One training job. Sizes are in examples, tokens or optimiser steps as the name says."""

    dataset: str = ""
    """Name of a dataset in `training.datasets`; empty when a JSONL file is given."""
    dataset_licence: str = ""
    num_examples: int = 2400
    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] = ALL_LINEAR
    num_last_layers: int = 0
    """How many layers, counted from the top, get an adapter; 0 means every layer."""
    learning_rate: float = 1e-3
    num_steps: int = 120
    batch_size: int = 16
    warmup_share: float = 0.05
    max_length: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_examples", "rank", "alpha", "num_steps", "batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.targets:
            raise TrainingError("targets is empty: name at least one module, for example q_proj")
        if not 0 < self.learning_rate < 1:
            raise TrainingError(f"learning_rate must lie in (0, 1), not {self.learning_rate}")


def load_recipe(name_or_path: str, **overrides: Any) -> Recipe:
    """Read a recipe by the name of a bundled one or by path; `overrides` win where not None.

    Raises:
        TrainingError: no such file, or a field that a recipe doesn't have.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = RECIPES_DIR / f"{name_or_path}.toml"
    if not path.is_file():
        bundled = ", ".join(sorted(p.stem for p in RECIPES_DIR.glob("*.toml")))
        raise TrainingError(f"no recipe {name_or_path!r}; bundled ones: {bundled}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise TrainingError(f"{path} is no valid TOML: {error}") from error
    unknown = values.keys() - {field.name for field in fields(Recipe)}
    if unknown:
        raise TrainingError(f"{path} has unknown fields: {', '.join(sorted(unknown))}")
    values.update({key: value for key, value in overrides.items() if value is not None})
    return make_recipe(values)


def load_recipe_data(name_or_path: str) -> Split:
    """The conversations of a recipe's dataset: what it trains on, and what it holds out.

    Raises:
        TrainingError: no such recipe, or one without a dataset that can be had.
    """
    recipe = load_recipe(name_or_path)
    return load_dataset(recipe.dataset, size=recipe.num_examples, seed=recipe.seed)


def make_recipe(values: dict[str, Any]) -> Recipe:
    """A recipe from plain values, lists turned into tuples; None means the default."""
    given = {key: value for key, value in values.items() if value is not None}
    if "targets" in given:
        given["targets"] = tuple(given["targets"])
    return Recipe(**given)
