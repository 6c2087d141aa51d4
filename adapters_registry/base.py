"""The base's shape, read from its `config.json`: which modules an adapter may touch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ModuleShape:
    """Features into and out of one linear layer or embedding."""

    in_features: int
    out_features: int


@dataclass(frozen=True)
class BaseSpec:
    """What the gate knows of the base: its modules, and how large a rank the engine takes."""

    name: str
    modules: dict[str, ModuleShape]
    """Full module name, as in PEFT's keys (`model.layers.0.self_attn.q_proj`), to its shape."""
    max_rank: int

    @classmethod
    def from_config(cls, name: str, config: dict[str, Any], max_rank: int) -> BaseSpec:
        """Derive the modules of a Llama-architecture model from its Hugging Face configuration.

        Raises:
            ValueError: the configuration isn't of a Llama-architecture causal language model.
        """
        if "LlamaForCausalLM" not in (config.get("architectures") or []):
            raise ValueError(
                f"{name} is no Llama base (architectures: {config.get('architectures')}); "
                "Loraplex serves LlamaForCausalLM models"
            )
        hidden, mlp = config["hidden_size"], config["intermediate_size"]
        heads = config["num_attention_heads"]
        head_dim = config.get("head_dim") or hidden // heads
        kv = (config.get("num_key_value_heads") or heads) * head_dim
        layer = {
            "self_attn.q_proj": ModuleShape(hidden, heads * head_dim),
            "self_attn.k_proj": ModuleShape(hidden, kv),
            "self_attn.v_proj": ModuleShape(hidden, kv),
            "self_attn.o_proj": ModuleShape(heads * head_dim, hidden),
            "mlp.gate_proj": ModuleShape(hidden, mlp),
            "mlp.up_proj": ModuleShape(hidden, mlp),
            "mlp.down_proj": ModuleShape(mlp, hidden),
        }
        modules = {
            f"model.layers.{index}.{part}": shape
            for index in range(config["num_hidden_layers"])
            for part, shape in layer.items()
        }
        return cls(name, modules, max_rank)

    @classmethod
    def from_directory(cls, directory: Path, max_rank: int) -> BaseSpec:
        """Read `config.json` of a model directory; `ValueError` as in `from_config`."""
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        try:
            return cls.from_config(directory.name, config, max_rank)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{directory}/config.json is no model configuration") from error
