"""The base's shape, read from its `config.json`: which modules an adapter may touch."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adapters_registry.check.norms import WeightNorms
from adapters_registry.families import LayerSizes, ModuleShape, family_of

MADE_FROM = "quantized_from"
"""The key of a quantised base's `config.json` that names the original base. It is our own key."""
QUANTIZATION = "rounded_to"
"""The key of a BF16 base's `config.json` that names the quantization its weights were rounded to.
It is our own key too."""


_QUANTIZED_NAMES = {
    "-unsloth-bnb-4bit": "nf4",
    "-bnb-4bit": "nf4",
    "-nf4": "nf4",
    "-awq": "awq",
    "-gptq": "gptq",
    "-fp8": "fp8",
}
"""Endings of names under which hubs have quantised copies. A longer one stands first."""


@dataclass(frozen=True)
class BaseSpec:
    """What the gate knows of the base: its modules, and the largest rank of the engine."""

    name: str
    modules: dict[str, ModuleShape]
    """Full module name, as in PEFT's keys (`model.layers.0.self_attn.q_proj`), to its shape."""
    max_rank: int
    norms: WeightNorms = field(default_factory=WeightNorms, compare=False)
    directory: Path | None = field(default=None, compare=False)
    """Where its files are, if it was read from there."""
    made_from: str = ""
    """The base that this one was quantised from. An adapter of that base may run on it."""
    quantization: str = ""
    """What its weights were rounded to: `nf4`, a method of vLLM's, or empty for nothing."""
    refuses_quantization_mismatch: bool = False
    """Whether adapters are refused that were trained over a base with another quantization."""
    fingerprint: str = ""
    """Tells this base from all others (`check/fingerprint.py`). Empty if it is not known."""

    def is_named(self, model: str) -> bool:
        """Return whether `model`, the base that an adapter names, is this one.

        Path, case and an ending that names a quantization are ignored. PEFT records only a name. A
        digest would say more, but it would refuse the same weights in another layout.
        """
        known = {split_quantization(name)[0] for name in (self.name, self.made_from)} - {""}
        return split_quantization(model)[0] in known

    def adapter_bytes(self, rank: int) -> int:
        """Return the bytes of an adapter in BF16 that has this rank on every linear layer."""
        features = sum(m.in_features + m.out_features for m in self.modules.values())
        return 2 * rank * features

    @classmethod
    def from_config(cls, name: str, config: dict[str, Any], max_rank: int) -> BaseSpec:
        """Derive a model's modules from its Hugging Face configuration.

        Raises:
            ValueError: the model belongs to no family that is known (`adapters_registry.families`).
        """
        family = family_of(config, name)
        sizes = LayerSizes.of(family, config)
        modules = {
            f"model.layers.{index}.{part}": shape
            for index in range(sizes.num_layers)
            for part, shape in sizes.modules(is_fused=family.is_fused).items()
        }
        made_from = config.get(MADE_FROM)
        made_from = made_from if isinstance(made_from, str) else ""
        return cls(
            name, modules, max_rank, made_from=made_from, quantization=quantization_of(config)
        )

    @classmethod
    def from_directory(cls, directory: Path, max_rank: int, name: str = "") -> BaseSpec:
        """Read `config.json` of a model directory. Raises `ValueError` as `from_config` does.

        `name` is the base's name, if that is not the directory's.
        """
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        try:
            name = name or short_name(str(directory.absolute()))
            spec = cls.from_config(name, config, max_rank)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{directory}/config.json is not a model configuration") from error
        return replace(spec, norms=WeightNorms(directory), directory=directory)


def quantization_of(config: dict[str, Any]) -> str:
    """Return what a model's weights were rounded to, by its configuration. Empty means nothing."""
    rounded = config.get(QUANTIZATION)
    if isinstance(rounded, str):
        return rounded
    quantization = config.get("quantization_config")
    return str(quantization.get("quant_method", "")) if isinstance(quantization, dict) else ""


def split_quantization(model: str) -> tuple[str, str | None]:
    """Return a model's own name in small letters without the ending for its quantization, and that.

    Hubs have quantised copies under such names: `SmolLM2-135M-Instruct-bnb-4bit` is
    `smollm2-135m-instruct`, rounded to `nf4`. None stands for a name without such an ending.
    ModelScope's `3___1` is `3.1`.
    """
    name = short_name(model).lower().replace("___", ".")
    for ending, quantization in _QUANTIZED_NAMES.items():
        if name.endswith(ending) and name != ending:
            return name.removesuffix(ending), quantization
    return name, None


def short_name(model: str) -> str:
    """Return a model's own name from a hub id, a path, or a path in the hub's cache.

    The cache has folders of the form `models--organisation--name/snapshots/commit`.
    """
    parts = [part for part in re.split(r"[/\\]", model) if part] or [""]
    if len(parts) >= 3 and parts[-2] == "snapshots":
        return parts[-3].split("--")[-1]
    return parts[-1]
