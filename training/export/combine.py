"""Combines several adapters into one, with PEFT's `add_weighted_adapter`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from adapters_registry.check.weights import trained_quantization
from adapters_registry.content.adapter_files import CONFIG_FILE, TEMPLATE_FILE, WEIGHTS_FILE
from training.errors import TrainingError
from training.evaluation.candidates import load_adapter
from training.models.adapter import Update, read_config, read_updates, size_of
from training.models.base_model import load_model, own_chat_template
from training.models.checkpoint import whole_or_not_at_all
from training.models.lora import write_adapter_weights

PEFT_METHODS = {"cat": "cat", "svd": "svd", "ties": "ties_svd", "dare": "dare_ties_svd"}
"""PEFT's names of our methods, which combine the updates themselves. PEFT's plain `linear`, `ties`
and `dare_ties` aren't used: they combine A and B separately, and the product of sums isn't the sum
of products."""
PRUNING = ("ties", "dare")


def combine_adapters(
    adapters: Sequence[Path],
    weights: Sequence[float],
    base: Path,
    out: Path,
    method: str = "cat",
    rank: int | None = None,
    density: float = 0.5,
) -> float:
    """Write the combination to the new directory `out`.

    `cat` is the exact weighted sum, whose rank is the sum of the ranks. `svd` is its best fit at
    `rank`, by default the largest of the adapters' ranks. `ties` (arXiv:2306.01708) and `dare`
    (arXiv:2311.03099) keep the share `density` of each update before they add the updates.

    Returns the distance from the weighted sum, relative to the size of the sum. 0 is exact.

    Raises:
        TrainingError: the adapters don't fit the base or each other, or `out` isn't empty.
    """
    _check(adapters, weights, method, rank)
    updates = [read_updates(adapter, base) for adapter in adapters]
    with whole_or_not_at_all(out) as scratch:
        options: dict[str, Any] = {"svd_rank": rank} if method != "cat" else {}
        if method in PRUNING:
            options["density"] = density
        combined = _combine(adapters, weights, base, PEFT_METHODS[method], options)
        combined.save_pretrained(
            scratch, selected_adapters=["combined"], save_embedding_layers=False
        )
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            (scratch / "combined" / name).rename(scratch / name)
        for file in (scratch / "combined").iterdir():
            file.unlink()  # PEFT's empty model card
        (scratch / "combined").rmdir()
        (scratch / "README.md").unlink(missing_ok=True)
        write_adapter_weights(load_file(scratch / WEIGHTS_FILE), scratch, _common_base(adapters))
        if template := _common_template(adapters):
            (scratch / TEMPLATE_FILE).write_text(template, encoding="utf-8")
        return _error(read_updates(scratch, base), updates, weights)


def _check(
    adapters: Sequence[Path], weights: Sequence[float], method: str, rank: int | None
) -> None:
    if method not in PEFT_METHODS:
        raise TrainingError(f"--method must be one of {', '.join(PEFT_METHODS)}, not {method}")
    if len(adapters) < 2 or len(adapters) != len(weights):
        raise TrainingError(
            f"give two adapters or more and a weight for each: {len(adapters)} adapter(s), "
            f"{len(weights)} weight(s)"
        )
    if method == "cat" and rank is not None:
        raise TrainingError(
            "cat's rank is the sum of the adapters' ranks; for another, use --method svd"
        )


def _combine(
    adapters: Sequence[Path],
    weights: Sequence[float],
    base: Path,
    method: str,
    options: dict[str, Any],
) -> Any:
    names = [f"adapter{index}" for index in range(len(adapters))]
    model = load_adapter(load_model(base), adapters[0], names[0])
    for name, adapter in zip(names[1:], adapters[1:], strict=True):
        model.load_adapter(adapter, name)
    # PEFT copies the new adapter's configuration from the first one. So the first must name all
    # layers that the adapters have, and must not scale sums a second time.
    layers = [model.peft_config[name].layers_to_transform for name in names]
    first = model.peft_config[names[0]]
    first.use_rslora = False
    first.layers_to_transform = (
        None if any(chosen is None for chosen in layers) else sorted({i for c in layers for i in c})
    )
    try:
        model.add_weighted_adapter(names, list(weights), "combined", method, **options)
    except ValueError as error:
        raise TrainingError(
            "PEFT can't combine these adapters: a module that one of them adapts must be adapted "
            f"in all layers of each ({error})"
        ) from error
    return model


def _common_base(adapters: Sequence[Path]) -> str | None:
    """Return the base's quantization in training, which must be the same for all adapters."""
    named = {read_config(adapter).get("base_model_name_or_path") for adapter in adapters}
    over = {trained_quantization(adapter / WEIGHTS_FILE) for adapter in adapters}
    if len(named) > 1 or len(over) > 1:
        raise TrainingError(
            f"the adapters were trained over different bases: {named}, rounded to {over}"
        )
    return over.pop()


def _common_template(adapters: Sequence[Path]) -> str:
    """Return the chat template that all adapters bring; empty if none does."""
    first, *others = {own_chat_template(adapter).strip() for adapter in adapters}
    if others:
        raise TrainingError(
            "the adapters were trained with different chat templates: put the one that is to be "
            f"used beside each of them, as {TEMPLATE_FILE}"
        )
    return first


def _error(
    combined: dict[str, Update],
    updates: Sequence[dict[str, Update]],
    weights: Sequence[float],
) -> float:
    """Return the distance from the weighted sum over all modules, relative to that sum's size."""
    distance = size = 0.0
    for module in {module for found in updates for module in found}:
        wanted = [
            Update(found[module].a, found[module].b, found[module].scale * weight)
            for found, weight in zip(updates, weights, strict=True)
            if module in found
        ]
        missing = [Update(u.a, u.b, -u.scale) for u in wanted]
        distance += size_of([*missing, combined[module]]) ** 2
        size += size_of(wanted) ** 2
    return float((distance / size) ** 0.5) if size else 0.0
