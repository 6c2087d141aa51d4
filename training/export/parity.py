"""Compares the logits of a merged model with those of its base with the adapter, on probe texts.

Both are computed in float64, so differences come from the weights and not from the arithmetic. A
Llama is computed one layer at a time, other families as whole models. The adapter is applied to
activations, as in PEFT and vLLM, so the comparison shares no code with the merge.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from adapters_registry.families import LLAMA, family_of
from training.data.conversations import exchange
from training.models.adapter import Update
from training.models.base_model import quiet_libraries
from training.models.checkpoint import Checkpoint
from training.quantization.calibration import Calibration, sample_texts
from training.quantization.nf4 import round_to_nf4

PROBES = (
    ("Turn on the lights in the kitchen", '{"intent": "HassTurnOn", "area": "kitchen"}'),
    ("Diagnosis: Acute bronchitis due to rhinovirus", "Diseases of the respiratory system"),
    ("What is the capital of France?", "The capital of France is Paris."),
    (
        "Write a haiku about rain.",
        "Grey sky, patient drops\ntapping time on the window\nuntil I listen",
    ),
    ("def fibonacci(n):", "    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)"),
    ("12 * 13 =", "156"),
)


NEAR_TIE = 0.9
"""A token with this share of the highest probability counts as the same: rounding may swap them."""
HEAD_ROWS = 8192
"""Number of rows of the head that are converted to float64 at a time."""


@dataclass(frozen=True)
class Parity:
    """The difference of a merged model from base and adapter, over all positions of the texts."""

    max_difference: float
    """The largest difference of a logit."""
    mean_difference: float
    divergence: float
    """Mean KL divergence of the next token's distribution, in nats."""
    top1: float
    """Share of positions with the same most likely token, or one that is nearly as likely."""
    num_positions: int

    def __str__(self) -> str:
        return (
            f"logits differ by at most {self.max_difference:.2g}, on average "
            f"{self.mean_difference:.2g}; KL {self.divergence:.2g} nats; the same top token, or "
            f"one nearly as likely, at {self.top1:.1%} of {self.num_positions} positions"
        )


def probe_texts(base: Path) -> list[list[int]]:
    """Return the token ids of the probes, in the base's chat format."""
    return sample_texts(base, [exchange(*probe) for probe in PROBES], len(PROBES))


def measure_parity(
    base: Checkpoint,
    merged: Checkpoint,
    texts: list[list[int]],
    updates: dict[str, Update],
    rounded: Collection[str] = (),
) -> Parity:
    """Compare the merged checkpoint with base and updates, on texts given as token ids.

    `rounded` names the weights of the base that are rounded to NF4 first. For a Llama, embedding,
    head and two layers are in memory at a time. For another family it is one whole model, with 8
    bytes for each weight, because its layers differ from each other, or its embedding is scaled.
    """
    if family_of(base.config) is not LLAMA:
        expected = _whole_logits(base, texts, updates, rounded)
        return parity_of(expected, _whole_logits(merged, texts, {}, ()))
    models = [(base, _States(base, texts)), (merged, _States(merged, texts))]
    layers = range(base.config["num_hidden_layers"])
    for index in track(layers, "verifying", console=Console(stderr=True), transient=True):
        models[0][1].advance(index, updates, rounded)
        models[1][1].advance(index, {}, ())
    expected, found = (walk.logits() for _, walk in models)
    return parity_of(expected, found)


class _States:
    """The hidden states of the texts in one checkpoint, advanced layer by layer."""

    def __init__(self, checkpoint: Checkpoint, texts: list[list[int]]) -> None:
        self._checkpoint = checkpoint
        embedding = checkpoint.tensor("model.embed_tokens.weight")
        self._states = Calibration(checkpoint.config, embedding, texts, torch.float64)

    def advance(self, index: int, updates: dict[str, Update], rounded: Collection[str]) -> None:
        prefix = f"model.layers.{index}."
        weights = {}
        for name in self._checkpoint.file_of:
            if name.startswith(prefix):
                weight = self._checkpoint.tensor(name)
                weight = round_to_nf4(weight) if name in rounded else weight
                weights[name.removeprefix(prefix)] = weight.double()
        layer = self._states.layer(weights)
        for module, update in updates.items():
            if module.startswith(prefix):
                _act_on_activations(layer.get_submodule(module.removeprefix(prefix)), update)
        self._states.advance(layer)

    def logits(self) -> torch.Tensor:
        """Return the logits at every position of the texts: shape (positions, vocabulary)."""
        names = self._checkpoint.file_of
        head = "lm_head.weight" if "lm_head.weight" in names else "model.embed_tokens.weight"
        states = self._states.outputs(self._checkpoint.tensor("model.norm.weight").double())
        parts = torch.split(self._checkpoint.tensor(head), HEAD_ROWS)
        return torch.cat([states @ part.double().T for part in parts], dim=1)


def _whole_logits(
    checkpoint: Checkpoint,
    texts: list[list[int]],
    updates: dict[str, Update],
    rounded: Collection[str],
) -> torch.Tensor:
    """Return the logits at every position of the texts: shape (positions, vocabulary)."""
    quiet_libraries()
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint.directory, dtype=torch.float64)
    for name in rounded:
        model.get_parameter(name).data = round_to_nf4(checkpoint.tensor(name)).double()
    for module, update in updates.items():
        _act_on_activations(model.get_submodule(module), update)
    with torch.inference_mode():
        return torch.cat([model(torch.tensor([text])).logits[0] for text in texts])


def _act_on_activations(linear: Any, update: Update) -> None:
    linear.register_forward_hook(lambda _, inputs, output: output + update(inputs[0]))


def parity_of(expected: torch.Tensor, found: torch.Tensor) -> Parity:
    """Compare logits of shape (positions, vocabulary)."""
    gap = (expected - found).abs()
    logp, logq = expected.log_softmax(-1), found.log_softmax(-1)
    divergence = (logp.exp() * (logp - logq)).sum(-1)
    chosen = logp.gather(-1, logq.argmax(-1, keepdim=True)).squeeze(-1)
    is_same = chosen - logp.amax(-1) >= math.log(NEAR_TIE)
    return Parity(
        max_difference=float(gap.max()),
        mean_difference=float(gap.mean()),
        divergence=max(0.0, float(divergence.mean())),
        top1=float(is_same.float().mean()),
        num_positions=len(expected),
    )
