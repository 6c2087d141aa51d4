"""A base small enough to make adapters for in a test."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

TINY_BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
}

AdapterFactory = Callable[..., Path]
