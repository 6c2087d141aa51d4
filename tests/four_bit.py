"""4-bit checkpoints read back, with what their own configuration says."""

import json
from pathlib import Path

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
