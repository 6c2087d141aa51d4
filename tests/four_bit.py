"""Weights in 4 bits: random ones, and those of checkpoints as their own configuration says."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file


def weights(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a model directory, as it is."""
    files = directory.glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def dequantized(directory: Path) -> dict[str, torch.Tensor]:
    """Every weight in full, under its name in the checkpoint that was quantised."""
    config = json.loads((directory / "config.json").read_text())["quantization_config"]
    scheme = QuantizationConfig(**config).config_groups["group_0"]
    found = weights(directory)
    for name in [name for name in found if name.endswith("weight_packed")]:
        module = name.removesuffix("weight_packed")
        parts = {
            key[len(module) :]: found.pop(key) for key in list(found) if key.startswith(module)
        }
        found[f"{module}weight"] = PackedQuantizationCompressor.decompress(parts, scheme)["weight"]
    return found


class FourBit(NamedTuple):
    """A weight as a file has it, and its numbers in float64."""

    words: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    weight: torch.Tensor


def random_four_bit(
    out_features: int, in_features: int, group: int, *, with_zeros: bool = False
) -> FourBit:
    """A random weight of which `group` features in share a scale between 0 and 1, and a zero."""
    values = torch.randint(-8, 8, (out_features, in_features))
    scales = torch.rand(out_features, in_features // group).to(torch.bfloat16)
    nibbles = (values + 8).view(out_features, -1, 8)
    words = (nibbles << (4 * torch.arange(8))).sum(2).to(torch.uint32).view(torch.int32)
    zeros = None
    if with_zeros:
        zeros = torch.randint(-8, 8, scales.shape, dtype=torch.int8)
        values = values - zeros.repeat_interleave(group, 1)
    return FourBit(words, scales, zeros, values * scales.double().repeat_interleave(group, 1))
