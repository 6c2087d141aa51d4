"""Recipes say what to train and how. A recipe is a TOML file; its fields are flags of `train`."""

from __future__ import annotations

import datetime
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from training.data.datasets.catalog import load_dataset
from training.data.datasets.split import Split
from training.data.rendering import DEFAULT_DATE
from training.errors import TrainingError

RECIPES_DIR = Path(__file__).parents[1] / "recipes"

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


METHODS = ("lora", "qlora", "full")
LEARNING_RATES = {"lora": 1e-3, "qlora": 1e-3, "full": 1e-4}
"""Default learning rates. Full fine-tuning needs a tenth to a thirtieth of LoRA's."""


@dataclass(frozen=True)
class Recipe:
    """One training job. The name of a size says whether it counts examples, tokens or steps."""

    dataset: str = ""
    """Name of a data set in `training/data/datasets/`, empty if a file is given."""
    dataset_licence: str = ""
    num_examples: int = 2400
    method: str = "lora"
    """`lora`, `qlora` (over a base in NF4 with double quantisation) or `full` (all weights)."""
    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] = ALL_LINEAR
    num_last_layers: int = 0
    """Number of layers, counted from the last, that get an adapter. 0 means all layers."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead of alpha / rank (arXiv:2312.03732)."""
    init: str = "default"
    """How A is initialised: `default` (Kaiming), `gaussian` or `orthogonal`. B starts at zero."""
    peft: dict[str, Any] = field(default_factory=dict)
    """More fields of PEFT's LoraConfig. A value that can't be served is refused."""
    learning_rate: float = LEARNING_RATES["lora"]
    num_steps: int = 120
    batch_size: int = 16
    """Examples that a step learns from."""
    accumulation: int = 1
    """Number of parts that a step's examples are cut into. They run in turn, to save memory."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: about a third slower, far less memory."""
    warmup_share: float = 0.05
    validation_share: float = 0.05
    """Share of the examples that is held out to measure the validation loss. 0 means none."""
    patience: int = 3
    """Stop if this many looks (of eight) bring no lower validation loss. 0 means never."""
    max_length: int = 512
    truncate: bool = False
    """Cut longer examples at `max_length` instead of refusing them."""
    chat_template: str = ""
    """The text of a chat template that replaces the base's. Empty means the base's own."""
    date: str = DEFAULT_DATE
    """The date that the chat template gets as today's date, for example `2024-07-26`."""
    refuse_special_tokens: bool = False
    """Refuse examples whose text holds special tokens, instead of counting them."""
    seed: int = 0
    expected: dict[str, float] = field(default_factory=dict)
    """The scores of a run of this recipe on its held-out examples, by metric."""

    def __post_init__(self) -> None:
        for name in (
            *("num_examples", "rank", "alpha", "num_steps", "batch_size", "accumulation"),
            "max_length",
        ):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.method not in METHODS:
            raise TrainingError(f"method must be {', '.join(METHODS)}, not {self.method!r}")
        if not self.targets:
            raise TrainingError("targets is empty: name at least one module, for example q_proj")
        if not 0 < self.learning_rate < 1:
            raise TrainingError(f"learning_rate must lie in (0, 1), not {self.learning_rate}")
        if not 0 <= self.validation_share < 0.9:
            raise TrainingError(
                f"validation_share must lie in [0, 0.9), not {self.validation_share}"
            )
        try:
            datetime.date.fromisoformat(self.date)
        except (ValueError, TypeError):
            raise TrainingError(f"date must be like {DEFAULT_DATE}, not {self.date!r}") from None
        if self.batch_size % self.accumulation:
            raise TrainingError(
                f"accumulation={self.accumulation} doesn't divide batch_size={self.batch_size}"
            )

    @property
    def has_adapter(self) -> bool:
        """Return whether the result is an adapter. Otherwise it is a full model."""
        return self.method != "full"


def load_recipe(name_or_path: str, **overrides: Any) -> Recipe:
    """Read a bundled recipe by its name, or a recipe by its path. `overrides` win if not None.

    Raises:
        TrainingError: there is no such file, or it has an unknown field.
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
        raise TrainingError(f"{path} isn't valid TOML: {error}") from error
    unknown = values.keys() - {field.name for field in fields(Recipe)}
    if unknown:
        raise TrainingError(f"{path} has unknown fields: {', '.join(sorted(unknown))}")
    before, after = values.get("method", "lora"), overrides.get("method")
    if after and LEARNING_RATES.get(after) != LEARNING_RATES.get(before):
        values.pop("learning_rate", None)  # a rate for adapters doesn't fit a full model
    values.update({key: value for key, value in overrides.items() if value is not None})
    return make_recipe(values)


def load_recipe_data(name_or_path: str) -> Split:
    """Return a recipe's data set: the conversations to train on, and those held out.

    Raises:
        TrainingError: there is no such recipe, or its data set can't be loaded.
    """
    recipe = load_recipe(name_or_path)
    return load_dataset(recipe.dataset, size=recipe.num_examples, seed=recipe.seed)


def make_recipe(values: dict[str, Any]) -> Recipe:
    """Return a recipe from plain values. None means the default, for the rate the method's."""
    given = {key: value for key, value in values.items() if value is not None}
    if isinstance(given.get("date"), datetime.date):  # TOML has dates of its own
        given["date"] = given["date"].isoformat()
    if "targets" in given:
        given["targets"] = tuple(given["targets"])
    rate = LEARNING_RATES.get(given.get("method", "lora"), LEARNING_RATES["lora"])
    return Recipe(**{"learning_rate": rate, **given})
