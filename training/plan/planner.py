"""Estimates a run's memory, time and cost, and recommends a method, before any run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from training.data.recipe import METHODS, Recipe
from training.plan.memory import Shape, TrainingMemory, training_memory

QLORA_SLOWDOWN = 1.25
"""Ratio of QLoRA's and LoRA's time for a step, measured on CPU. QLoRA unpacks weights twice."""
FEW_EXAMPLES = 1000
"""With fewer examples than this, full fine-tuning learns them by heart."""
GAPS = {"ordinary": (0.01, 0.03), "domain": (0.04, 0.07)}
"""Published range of LoRA's distance to full fine-tuning, for each kind of task."""
QLORA_GAP = (0.005, 0.015)
"""Published range of QLoRA's distance to LoRA."""


@dataclass(frozen=True)
class Estimate:
    """The memory of one method, and the time and cost of a run over the data."""

    method: str
    num_trainable: int
    memory: TrainingMemory
    seconds: float | None
    cost: float | None


@dataclass(frozen=True)
class Hardware:
    """The machine or GPU: its memory in bytes, its speed and its price."""

    memory_bytes: int | None = None
    flops_per_second: float | None = None
    """The speed that training reaches. It is lower than the data sheet's peak."""
    price_per_hour: float | None = None


@dataclass(frozen=True)
class Advice:
    """The recommended method (empty if none fits), and the reasons."""

    method: str
    reasons: list[str]


def estimate(
    shape: Shape,
    recipe: Recipe,
    length: int,
    num_tokens: int = 0,
    hardware: Hardware | None = None,
    answer_share: float = 0.5,
) -> Estimate:
    """Return a recipe's estimate. `num_tokens` is the number in all steps, 0 if unknown."""
    hardware = hardware or Hardware()
    seconds = cost = None
    if num_tokens and hardware.flops_per_second:
        seconds = num_tokens * flops_per_token(shape, recipe) / hardware.flops_per_second
        if hardware.price_per_hour is not None:
            cost = seconds / 3600 * hardware.price_per_hour
    return Estimate(
        recipe.method,
        shape.num_trainable(recipe),
        training_memory(shape, recipe, length, answer_share),
        seconds,
        cost,
    )


def flops_per_token(shape: Shape, recipe: Recipe) -> float:
    """Return the operations for one token (Kaplan et al., 2020, arXiv:2001.08361).

    Each weight takes two operations in the forward pass, two for the gradient of the inputs, and
    two for the weight's own gradient if it is trained. Attention over long contexts isn't counted.
    """
    passes = 6 if not recipe.has_adapter else 4
    passes += 2 if recipe.gradient_checkpointing else 0
    slowdown = QLORA_SLOWDOWN if recipe.method == "qlora" else 1
    weights = shape.num_linear + shape.vocabulary * shape.hidden
    return slowdown * passes * weights + (6 * shape.num_trainable(recipe) * recipe.has_adapter)


def estimate_all(
    shape: Shape, recipe: Recipe, length: int, num_tokens: int, hardware: Hardware
) -> list[Estimate]:
    """Return the estimates of full fine-tuning, LoRA and QLoRA by the same recipe."""
    return [
        estimate(shape, replace(recipe, method=method), length, num_tokens, hardware)
        for method in ("full", "lora", "qlora")
    ]


def advise(
    estimates: list[Estimate],
    memory_bytes: int | None,
    num_examples: int | None = None,
    task: str = "ordinary",
    max_gap: float = 0.03,
) -> Advice:
    """Recommend a method whose published quality is at most `max_gap` below full fine-tuning's.

    The choice is LoRA if its quality is near enough, QLoRA if LoRA doesn't fit into the memory, and
    full fine-tuning if neither is near enough and there are enough examples.
    """
    peaks = {e.method: e.memory.peak for e in estimates}
    fits = {m for m, peak in peaks.items() if memory_bytes is None or peak <= memory_bytes}
    low, high = GAPS[task]
    reasons = []
    if memory_bytes is not None:
        for method in METHODS:
            verdict = "fits" if method in fits else "doesn't fit"
            reasons.append(f"{method} takes {_gb(peaks[method])}: {verdict} in {_gb(memory_bytes)}")
    if not fits:
        reasons.append("cut memory: gradient checkpointing, a shorter length, more accumulation")
        return Advice("", reasons)
    reasons.append(
        f"on {task} tasks LoRA is published at {low:.0%} to {high:.0%} behind full fine-tuning, "
        f"QLoRA {QLORA_GAP[0]:.1%} to {QLORA_GAP[1]:.1%} behind LoRA; {max_gap:.1%} is accepted"
    )
    is_near = (low + high) / 2 <= max_gap
    has_data = num_examples is None or num_examples >= FEW_EXAMPLES
    if not is_near and "full" in fits and has_data:
        reasons.append("so LoRA is likely to miss the target, and full fine-tuning fits")
        return Advice("full", reasons)
    if not has_data:
        reasons.append(f"{num_examples} examples are few: full would learn them by heart")
    if not is_near:
        reasons.append("LoRA may miss the target: try rank 64, and compare on your data")
    if "lora" in fits:
        reasons.append("LoRA costs no inference quality, and many adapters share one base")
        return Advice("lora", reasons)
    if "qlora" in fits:
        reasons.append("QLoRA is what fits; serve its adapter over the NF4 base that it learned on")
        return Advice("qlora", reasons)
    reasons.append("only full fine-tuning fits, so check the recipe's rank and targets")
    return Advice("full", reasons)


def slots_and_context(
    shape: Shape, memory_bytes: int, max_rank: int, num_slots: int, weight_bytes: int
) -> int:
    """Return how many tokens of KV cache fit into the memory with weights and slots."""
    room = memory_bytes - weight_bytes - num_slots * shape.slot_bytes(max_rank)
    return max(0, room // shape.kv_bytes_per_token)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
