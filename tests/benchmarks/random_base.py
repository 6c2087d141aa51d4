"""Writes a base with random weights: enough for speed, in shapes that we cannot ship."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from loadtest.drive.random_adapters import LlamaShape

LLAMA_32_1B = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
}
"""The sizes in Llama-3.2-1B's `config.json`."""

POOL, SIZE, STEP = 1 << 24, 0.02, 7919


def write_random_base(like: Path, sizes: dict[str, Any], directory: Path) -> None:
    """Write a base of these sizes to a new directory, with all but the weights of the base `like`.

    Weights are parts of one pool of random numbers, because making 1.2 thousand million of them
    takes minutes.
    """
    directory.mkdir(parents=True)
    config = json.loads((like / "config.json").read_text()) | sizes
    (directory / "config.json").write_text(json.dumps(config))
    for file in like.iterdir():
        if file.name != "config.json" and ".safetensors" not in file.name and file.is_file():
            shutil.copy(file, directory / file.name)
    random = torch.Generator().manual_seed(0)
    pool = torch.randn(POOL, generator=random).mul_(SIZE).to(torch.bfloat16)

    def numbers(*shape: int) -> torch.Tensor:
        count = torch.Size(shape).numel()
        first = int(torch.randint(POOL, (1,), generator=random))
        parts = [pool.roll(first + STEP * n) for n in range(-(-count // POOL))]
        return torch.cat(parts)[:count].view(shape).clone()

    hidden, ones = config["hidden_size"], torch.ones(config["hidden_size"], dtype=torch.bfloat16)
    weights = {
        "model.embed_tokens.weight": numbers(config["vocab_size"], hidden),
        "model.norm.weight": ones,
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name, (features_in, features_out) in LlamaShape.from_config(config).modules().items():
            weights[f"{prefix}.{name}.weight"] = numbers(features_out, features_in)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}.{name}.weight"] = ones.clone()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
