"""Turns a BF16 or FP16 checkpoint into a 4-bit one (W4A16) that vLLM serves.

The format is compressed-tensors' `pack-quantized`, which runs on CPU and, through Marlin or
Machete, on GPUs. Embedding, head, norms and all activations keep their type.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import (
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
)
from rich.console import Console
from rich.progress import track

from adapters_registry.check.base import MADE_FROM, BaseSpec, short_name
from adapters_registry.families import LLAMA, family_of
from training.errors import TrainingError
from training.models.checkpoint import Checkpoint, CheckpointWriter, whole_or_not_at_all
from training.quantization.calibration import Calibration
from training.quantization.gptq import four_bit_scheme, round_weight

GROUP_SIZES = (32, 64, 128)
FEATURES_STEP = 32
"""The kernels need both sides of a layer to be divisible by this."""

FED_ALIKE = {
    "self_attn.q_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
"""A layer's linear modules, grouped by their common input. The first of each group is the key."""


def quantize_checkpoint(
    base: Path, out: Path, group_size: int = 32, samples: list[list[int]] | None = None
) -> None:
    """Quantise a Llama checkpoint to 4 bits in the new directory `out`.

    `samples` are token ids of texts like those that the model will see. With samples, each layer is
    rounded so that its outputs on them change least. Otherwise each weight takes the nearest value.
    One layer at a time is in memory, and the tensors that aren't written yet.

    Raises:
        TrainingError: `out` isn't empty, or the base can't be quantised. The message says why.
    """
    if group_size not in GROUP_SIZES:
        raise TrainingError(f"--group-size must be one of {', '.join(map(str, GROUP_SIZES))}")
    checkpoint = Checkpoint.open(base)
    _check(checkpoint, group_size)
    scheme = four_bit_scheme(group_size)
    with whole_or_not_at_all(out) as scratch:
        _write_weights(checkpoint, scheme, samples, CheckpointWriter(scratch))
        _write_config(checkpoint.config, scheme, short_name(str(base.absolute())), scratch)
        checkpoint.copy_other_files(scratch)


def _check(checkpoint: Checkpoint, group_size: int) -> None:
    """Raise `TrainingError` if the base is unknown, quantised, or can't be divided into groups."""
    checkpoint.linear_weights()
    if (family := family_of(checkpoint.config)) is not LLAMA:
        raise TrainingError(
            f"4-bit weights can be made of Llama bases only, and {checkpoint.directory} is "
            f"{family.name}: use --method nf4, or a 4-bit checkpoint that others made"
        )
    modules = BaseSpec.from_directory(checkpoint.directory, max_rank=1).modules
    for name, shape in modules.items():
        if shape.in_features % group_size or shape.out_features % FEATURES_STEP:
            raise TrainingError(
                f"{name} maps {shape.in_features} features to {shape.out_features}: they must be "
                f"divisible by the group size {group_size} and by {FEATURES_STEP}"
            )


def _write_weights(
    checkpoint: Checkpoint,
    scheme: QuantizationScheme,
    samples: list[list[int]] | None,
    writer: CheckpointWriter,
) -> None:
    outside = [name for name in checkpoint.file_of if not name.startswith("model.layers.")]
    writer.add({name: checkpoint.tensor(name) for name in outside})
    calibration = None
    if samples:
        embedding = "model.embed_tokens.weight"
        calibration = Calibration(checkpoint.config, checkpoint.tensor(embedding), samples)
    layers = range(checkpoint.config["num_hidden_layers"])
    for index in track(layers, "quantising", console=Console(stderr=True), transient=True):
        prefix = f"model.layers.{index}."
        weights = {
            name.removeprefix(prefix): checkpoint.tensor(name)
            for name in checkpoint.file_of
            if name.startswith(prefix)
        }
        tensors = _quantize_layer(prefix, weights, scheme, calibration)
        writer.add({prefix + name: tensor for name, tensor in tensors.items()})
    writer.finish()


def _quantize_layer(
    prefix: str,
    weights: dict[str, torch.Tensor],
    scheme: QuantizationScheme,
    calibration: Calibration | None,
) -> dict[str, torch.Tensor]:
    """Return one layer's tensors for the file, by their names after the layer's prefix."""
    for module in itertools.chain(*FED_ALIKE.values()):
        weight = weights[f"{module}.weight"]
        if weight.dtype not in (torch.bfloat16, torch.float16, torch.float32):
            raise TrainingError(f"{prefix}{module} has the type {weight.dtype}, not BF16 or FP16")
        if not weight.isfinite().all():
            raise TrainingError(f"{prefix}{module} holds values that aren't finite")
    moments = {}
    if calibration:
        layer = calibration.layer(weights)
        moments = calibration.moments(layer, list(FED_ALIKE))
    tensors = dict(weights)
    for first, modules in FED_ALIKE.items():
        for module in modules:
            weight = tensors.pop(f"{module}.weight")
            rounded, packed = round_weight(weight, scheme, moments.get(first))
            weight.copy_(rounded)
            tensors |= {f"{module}.{name}": tensor for name, tensor in packed.items()}
    if calibration:
        calibration.advance(calibration.layer(weights))
    return tensors


def _write_config(
    config: dict[str, Any], scheme: QuantizationScheme, base_name: str, directory: Path
) -> None:
    """Write the base's configuration, with the description of the weights that vLLM needs."""
    quantization = QuantizationConfig(
        config_groups={"group_0": scheme},
        ignore=["lm_head"],
        format=CompressionFormat.pack_quantized.value,
        quantization_status=QuantizationStatus.COMPRESSED,
    )
    whole = config | {
        "quantization_config": quantization.model_dump(mode="json"),
        MADE_FROM: base_name,
    }
    (directory / "config.json").write_text(json.dumps(whole, indent=2) + "\n")
