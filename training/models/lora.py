"""Adds an adapter to a base and saves it. An adapter that can't be served is refused early."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from adapters_registry.check.base import short_name
from adapters_registry.check.peft_config import PeftConfig
from adapters_registry.check.weights import TRAINED_QUANTIZATION
from adapters_registry.content.adapter_files import WEIGHTS_FILE
from training.data.recipe import Recipe
from training.errors import TrainingError

MAX_RANK = 512
"""vLLM's own limit; a server's is LORAPLEX_MAX_LORA_RANK."""


def lora_config(recipe: Recipe, num_layers: int) -> Any:
    """Return PEFT's configuration for a recipe.

    Raises:
        TrainingError: vLLM couldn't serve the adapter. The message has every reason.
    """
    from peft import LoraConfig

    layers = None
    if recipe.num_last_layers:
        layers = list(range(max(0, num_layers - recipe.num_last_layers), num_layers))
    values: dict[str, Any] = {
        "r": recipe.rank,
        "lora_alpha": recipe.alpha,
        "target_modules": list(recipe.targets),
        "layers_to_transform": layers,
        "use_rslora": recipe.rslora,
        "init_lora_weights": True if recipe.init == "default" else recipe.init,
        "task_type": "CAUSAL_LM",
        **recipe.peft,
    }
    # These are the gate's own rules, so a server will accept the adapter that is trained.
    faults = [fault.message for fault in PeftConfig({"peft_type": "LORA", **values}).faults()]
    ranks = [values["r"], *(values.get("rank_pattern") or {}).values()]
    if not faults and max(ranks) > MAX_RANK:
        faults = [f"rank {max(ranks)} is over vLLM's limit of {MAX_RANK}"]
    if faults:
        raise TrainingError("what this recipe trains couldn't be served: " + "; ".join(faults))
    try:
        return LoraConfig(**values)
    except (TypeError, ValueError) as error:
        raise TrainingError(f"PEFT refuses this configuration: {error}") from error


def add_lora(model: Any, recipe: Recipe) -> Any:
    """Return the model with a new adapter. Only the adapter's weights are trained.

    Raises:
        TrainingError: the adapter couldn't be served, or the base lacks the targets.
    """
    from peft import get_peft_model

    config = lora_config(recipe, model.config.num_hidden_layers)
    _check_targets(model, recipe.targets)
    return get_peft_model(model, config)


def _check_targets(model: Any, targets: tuple[str, ...]) -> None:
    """Check that the targets are linear modules of the base's layers, as the gate requires."""
    known = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in name
    }
    unknown = [target for target in targets if target not in known]
    if unknown:
        hints = []
        for target in unknown:
            nearest = difflib.get_close_matches(target, sorted(known), n=2, cutoff=0.3)
            hints.append(
                f"{target!r}" + (f" (did you mean {' or '.join(nearest)}?)" if nearest else "")
            )
        raise TrainingError(
            f"these targets don't fit the base: {', '.join(hints)}; "
            f"it has {', '.join(sorted(known))}"
        )


def save_adapter(adapted: Any, out: Path, base: Path, base_quantization: str) -> None:
    """Write an adapter in PEFT's format, in bfloat16: the same weights are evaluated and served.

    The base's name is recorded, because its path means nothing on another machine. The base's
    quantization is recorded in the metadata of the weights' file, which PEFT and vLLM ignore.
    """
    adapted.peft_config["default"].base_model_name_or_path = short_name(str(base.absolute()))
    # Otherwise PEFT looks for that name on the hub, to check whether the embedding has grown.
    adapted.save_pretrained(out, save_embedding_layers=False)
    tensors = load_file(out / WEIGHTS_FILE)
    write_adapter_weights(tensors, out, base_quantization)
    (out / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def write_adapter_weights(
    tensors: dict[str, torch.Tensor], out: Path, base_quantization: str | None
) -> None:
    """Write an adapter's tensors in bfloat16. `base_quantization` is None if it isn't known."""
    metadata = {"format": "pt"}
    if base_quantization is not None:
        metadata[TRAINED_QUANTIZATION] = base_quantization
    halved = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}
    save_file(halved, out / WEIGHTS_FILE, metadata=metadata)
