"""Random adapters to measure with: they need no training, and answers stay sensible.

They touch every linear layer of the base; the default shape is the bundled base's.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

UPDATE_SIZE = 0.002
"""Standard deviation of the entries of A and B: so small that answers stay close to the base's."""


@dataclass(frozen=True)
class LlamaShape:
    """The sizes that decide the shapes of the linear layers of a Llama, or of a model like it."""

    layers: int = 30
    hidden: int = 576
    mlp: int = 1536
    kv: int = 192
    query: int = 0
    """Width of all query heads together; 0 stands for the hidden size."""
    is_fused: bool = False
    """Whether a layer is in one piece for query, key and value, and in one for gate and up."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LlamaShape:
        """Read a Hugging Face `config.json`."""
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        head_dim = config.get("head_dim") or hidden // heads
        kv = (config.get("num_key_value_heads") or heads) * head_dim
        is_fused = "Phi3ForCausalLM" in (config.get("architectures") or [])
        mlp = config["intermediate_size"]
        return cls(config["num_hidden_layers"], hidden, mlp, kv, heads * head_dim, is_fused)

    def modules(self) -> dict[str, tuple[int, int]]:
        """Return the features into and out of each linear layer of a block, by the layer's name."""
        hidden, mlp, kv, query = self.hidden, self.mlp, self.kv, self.query or self.hidden
        if self.is_fused:
            return {
                "self_attn.qkv_proj": (hidden, query + 2 * kv),
                "self_attn.o_proj": (query, hidden),
                "mlp.gate_up_proj": (hidden, 2 * mlp),
                "mlp.down_proj": (mlp, hidden),
            }
        return {
            "self_attn.q_proj": (hidden, query),
            "self_attn.k_proj": (hidden, kv),
            "self_attn.v_proj": (hidden, kv),
            "self_attn.o_proj": (query, hidden),
            "mlp.gate_proj": (hidden, mlp),
            "mlp.up_proj": (hidden, mlp),
            "mlp.down_proj": (mlp, hidden),
        }


def make_adapter(
    directory: Path, shape: LlamaShape, *, rank: int, seed: int, size: float = UPDATE_SIZE
) -> None:
    """Write an adapter in PEFT's format to a new directory.

    `size` is the standard deviation of its entries.
    """
    rng = np.random.default_rng(seed)
    weights = {}
    for layer in range(shape.layers):
        for module, (features_in, features_out) in shape.modules().items():
            key = f"base_model.model.model.layers.{layer}.{module}"
            for side, form in (("A", (rank, features_in)), ("B", (features_out, rank))):
                values = rng.normal(0, size, form).astype(np.float32)
                weights[f"{key}.lora_{side}.weight"] = values
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted({name.split(".")[1] for name in shape.modules()}),
    }
    directory.mkdir()
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file(weights, directory / "adapter_model.safetensors")


def main(directory: str) -> None:
    """Write the first four adapters that scenarios register, `a0` to `a3`."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    for seed in range(4):
        make_adapter(Path(directory) / f"a{seed}", LlamaShape(), rank=8, seed=seed)


if __name__ == "__main__":
    main(sys.argv[1])
