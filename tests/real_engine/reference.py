"""What transformers and PEFT say of the engine's answers: the same weights, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

NOISE = 0.15
"""Bound on `distance` to the model that answered.

Processors with instructions for bfloat16 give a tenth of it, those without up to 0.12. The distance
to any other model is at least twice the bound.
"""


def make_adapter(base: Path, directory: Path, seed: int, **config: Any) -> Path:
    """A random adapter of PEFT's whose answers are far from the base's."""
    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**config))
    for name, weight in model.named_parameters():
        if "lora_" in name:
            size = 0.3 if "lora_A" in name else 0.8
            weight.data = torch.randn(weight.shape) * size / config["r"] ** 0.5
    model.save_pretrained(directory)
    return directory


def load(base: Path, adapter: Path | None = None, **config: Any) -> Any:
    """The model in float32; `config` bends the base's configuration."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **config)
    return PeftModel.from_pretrained(model, adapter) if adapter else model


def distance(model: Any, prompt: list[int], tokens: list[int], logprobs: list[float]) -> float:
    """Mean difference of an answer's log-probabilities from the model's own."""
    ids = torch.tensor([[*prompt, *tokens[:-1]]])
    with torch.inference_mode():
        logits = model(ids, logits_to_keep=len(tokens)).logits[0]
    expected = logits.log_softmax(-1)[range(len(tokens)), tokens]
    return float((expected - torch.tensor(logprobs)).abs().mean())
