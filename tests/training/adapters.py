"""Adapters of random weights, made by PEFT itself."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from training.models.base_model import load_model


def make_adapter(base: Path, directory: Path, seed: int = 1, **config: Any) -> Path:
    """An adapter of random weights, by PEFT itself."""
    torch.manual_seed(seed)
    model = load_model(base, torch.float32)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **config}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(directory)
    return directory


def mark_trained_quantization(adapter: Path, quantization: str) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt", "trained_over": quantization})
