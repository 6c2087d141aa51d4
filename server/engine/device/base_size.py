"""Reads from a base's directory how much memory weights, adapter slots and KV cache need."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapters_registry.check.base import BaseSpec, quantization_of
from adapters_registry.families import LayerSizes, family_of

_BF16_BYTES = 2
_BYTES_PER_WEIGHT = {"": 2.0, "nf4": 2.0, "fp8": 1.0}
"""Bytes for each weight of a linear layer, by quantization. A base rounded to NF4 is stored in
BF16. Any other quantization takes 0.5625 bytes: four bits and a scale."""


@dataclass(frozen=True)
class BaseSize:
    """Sizes of one base, for the whole model (not for each GPU)."""

    weights_bytes: int
    slot_bytes_per_rank: int
    """Bytes of an adapter slot in BF16, on all linear layers, for each unit of the largest rank."""
    kv_bytes_per_token: int
    """Bytes of a KV cache in BF16. Layers with a sliding window take less of a long prompt."""
    max_tokens: int
    """The longest context that the base was trained for."""

    @classmethod
    def from_directory(cls, directory: Path) -> BaseSize:
        """Read `config.json` and the sizes of the weight files.

        Raises:
            OSError: there is no readable `config.json`.
            ValueError: it doesn't describe a model of a known family.
        """
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        size = cls.from_config(config)
        return replace(size, weights_bytes=_bytes_of_weights(directory) or size.weights_bytes)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> BaseSize:
        """Compute the sizes from a Hugging Face configuration. That of the weights is an estimate.

        Raises:
            ValueError: it doesn't describe a model of a known family.
        """
        try:
            modules = BaseSpec.from_config("the base", config, max_rank=1).modules
            family = family_of(config)
            sizes = LayerSizes.of(family, config)
            tables = 1 if family.has_tied_head(config) else 2
            num_embedding = tables * config["vocab_size"] * sizes.hidden
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"config.json is not a model configuration: {error}") from None
        num_linear = sum(m.in_features * m.out_features for m in modules.values())
        bytes_per_weight = _BYTES_PER_WEIGHT.get(quantization_of(config), 0.5625)
        features = sum(m.in_features + m.out_features for m in modules.values())
        return cls(
            weights_bytes=round(num_linear * bytes_per_weight) + num_embedding * _BF16_BYTES,
            slot_bytes_per_rank=features * _BF16_BYTES,
            kv_bytes_per_token=2 * sizes.num_layers * sizes.key_value * _BF16_BYTES,
            max_tokens=int(config.get("max_position_embeddings") or 2048),
        )


def size_of(directory: Path) -> BaseSize | None:
    """Return the size of a base, or None if it can't be read. Loading the base will report why."""
    try:
        return BaseSize.from_directory(directory)
    except (OSError, ValueError):
        return None


def _bytes_of_weights(directory: Path) -> int:
    """Return the bytes of the weight files, or 0 if some are not downloaded yet."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    else:
        named = {file.name for file in directory.glob("*.safetensors")}
    files = [directory / name for name in named]
    return sum(file.stat().st_size for file in files) if all(f.is_file() for f in files) else 0
