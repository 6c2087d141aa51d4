"""Computes the memory of training and serving, in bytes, only from a model's configuration.

Activations are the tensors that autograd keeps, given our loss (`training/run/trainer.py`) and
PyTorch's fused attention. `tests/training/plan/test_planner.py` compares them with a real model's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adapters_registry.check.base import BaseSpec
from adapters_registry.families import Family, LayerSizes, ModuleShape, family_of
from training.data.recipe import Recipe
from training.errors import TrainingError

MIB, GIB = 1 << 20, 1 << 30
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in NF4: half a byte, a byte of scale for 64 weights, 4 bytes for 256 scales."""
LOGIT_BYTES = 12
"""Bytes for each token of an answer and each entry of the vocabulary: log-probabilities in float32,
and at the peak their gradient, and both in bfloat16."""


@dataclass(frozen=True)
class Shape:
    """A base's sizes."""

    family: Family
    modules: dict[str, ModuleShape]
    num_layers: int
    hidden: int
    mlp: int
    query: int
    """Width of all query heads together. `key_value` is that of the key heads or value heads."""
    key_value: int
    num_heads: int
    vocabulary: int
    is_tied: bool

    @classmethod
    def of(cls, config: dict[str, Any], name: str = "the base") -> Shape:
        """Read a Hugging Face configuration.

        Raises:
            TrainingError: it isn't the configuration of a known model.
        """
        try:
            modules = BaseSpec.from_config(name, config, max_rank=1).modules
            family = family_of(config)
            sizes = LayerSizes.of(family, config)
            return cls(
                family,
                modules,
                num_layers=sizes.num_layers,
                hidden=sizes.hidden,
                mlp=sizes.mlp,
                query=sizes.query,
                key_value=sizes.key_value,
                num_heads=config["num_attention_heads"],
                vocabulary=config["vocab_size"],
                is_tied=family.has_tied_head(config),
            )
        except ValueError as error:
            raise TrainingError(str(error)) from None
        except (KeyError, TypeError) as error:
            raise TrainingError(f"config.json is not a model configuration: {error}") from None

    @property
    def num_linear(self) -> int:
        """Return the number of weights of the layers' linear modules."""
        return sum(m.in_features * m.out_features for m in self.modules.values())

    @property
    def num_other(self) -> int:
        """Return the number of weights of embedding, head and norms."""
        tables = 1 if self.is_tied else 2
        return tables * self.vocabulary * self.hidden + (2 * self.num_layers + 1) * self.hidden

    @property
    def num_parameters(self) -> int:
        """Return the number of weights of the model."""
        return self.num_linear + self.num_other

    @property
    def kv_bytes_per_token(self) -> int:
        """Return the bytes of the KV cache for one token, in bfloat16."""
        return 2 * self.num_layers * self.key_value * 2

    def slot_bytes(self, max_rank: int) -> int:
        """Return the bytes of an engine's slot that holds this rank on every linear module."""
        features = sum(m.in_features + m.out_features for m in self.modules.values())
        return 2 * max_rank * features

    def adapted(self, recipe: Recipe) -> list[ModuleShape]:
        """Return the modules that a recipe adapts."""
        lowest = self.num_layers - (recipe.num_last_layers or self.num_layers)
        targets = self.family.own_names(recipe.targets)
        return [
            shape
            for name, shape in self.modules.items()
            if name.rsplit(".", 1)[1] in targets and int(name.split(".")[2]) >= lowest
        ]

    def num_trainable(self, recipe: Recipe) -> int:
        """Return how many weights a recipe trains."""
        if not recipe.has_adapter:
            return self.num_parameters
        adapted = self.adapted(recipe)
        return recipe.rank * sum(m.in_features + m.out_features for m in adapted)


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes during training, by part. Their sum is the peak of live tensors."""

    weights: int
    quantisation: int
    """The scales of 4-bit weights. They are in none of the other figures."""
    gradients: int
    optimiser: int
    activations: int
    artefact: int
    """The weights that are written at the end, in bfloat16. They aren't part of the peak."""

    @property
    def state(self) -> int:
        """Return the bytes that are kept from step to step."""
        return self.weights + self.quantisation + self.gradients + self.optimiser

    @property
    def peak(self) -> int:
        """Return the bytes of state and activations together."""
        return self.state + self.activations


def training_memory(
    shape: Shape, recipe: Recipe, length: int, answer_share: float = 0.5
) -> TrainingMemory:
    """Return the memory of a recipe on sequences of `length` tokens.

    `answer_share` is the share of tokens that carry loss.

    Full fine-tuning keeps float32 weights and computes in bfloat16. LoRA keeps the base in bfloat16
    and the adapter in float32. QLoRA does the same, with the base in NF4. AdamW has two float32
    moments.
    """
    trained = shape.num_trainable(recipe)
    weights, quantisation = 4 * shape.num_parameters, 0
    if recipe.has_adapter:
        weights = 2 * shape.num_parameters + 4 * trained
    if recipe.method == "qlora":
        weights = shape.num_linear // 2 + 2 * shape.num_other + 4 * trained
        quantisation = round(shape.num_linear * (NF4_BYTES - 0.5))
    return TrainingMemory(
        weights=weights,
        quantisation=quantisation,
        gradients=4 * trained,
        optimiser=8 * trained,
        activations=activation_bytes(shape, recipe, length, answer_share, LOGIT_BYTES),
        artefact=2 * trained,
    )


def activation_bytes(
    shape: Shape, recipe: Recipe, length: int, answer_share: float, logit_bytes: int
) -> int:
    """Return the bytes kept for gradients of `batch_size / accumulation` sequences."""
    tokens = length * recipe.batch_size // recipe.accumulation
    per_token = _layer_bytes(shape, recipe)
    layers = (recipe.num_last_layers if recipe.has_adapter else 0) or shape.num_layers
    kept = layers * per_token
    if recipe.gradient_checkpointing:  # every layer's input, and one layer at a time in full
        kept = layers * shape.hidden * (2 if recipe.has_adapter else 4) + per_token
    logits = round(tokens * answer_share) * shape.vocabulary * logit_bytes
    copies = 0
    if not recipe.has_adapter:  # the weights that autocast turns into bfloat16
        copies = 2 * (shape.num_linear + shape.vocabulary * shape.hidden)
    return tokens * kept + logits + copies


def _layer_bytes(shape: Shape, recipe: Recipe) -> int:
    """Return the bytes a layer keeps for a token: inputs of products, norms, attention, gates."""
    attention = 2 * (2 * shape.query + 2 * shape.key_value) + 4 * shape.num_heads
    if not recipe.has_adapter:
        return attention + 26 * shape.hidden + 8 * shape.mlp
    first = {n.rsplit(".", 1)[1]: m for n, m in shape.modules.items() if ".layers.0." in n}
    targets = shape.family.own_names(recipe.targets)
    adapted = [module for name, module in first.items() if name in targets]
    copies = sum(4 * (m.in_features + recipe.rank) for m in adapted)
    return attention + 8 * shape.hidden + 6 * shape.mlp + copies
