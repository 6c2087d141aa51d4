"""A tiny model of each family of bases, with what sets the family apart, and random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

BYTES = 256
VOCABULARY = 320

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 224,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.12,  # answers differ enough to tell models apart
    "bos_token_id": None,
    "eos_token_id": BYTES,
    "pad_token_id": BYTES,
    "tie_word_embeddings": False,
}
OF_ARCHITECTURE: dict[str, tuple[str, dict[str, Any]]] = {
    "LlamaForCausalLM": ("llama", {}),
    "MistralForCausalLM": ("mistral", {"head_dim": 64, "sliding_window": 16}),
    "Qwen2ForCausalLM": ("qwen2", {"tie_word_embeddings": True}),
    "Qwen3ForCausalLM": ("qwen3", {"head_dim": 64, "tie_word_embeddings": True}),
    "Gemma3ForCausalLM": (
        "gemma3_text",
        {
            "head_dim": 64,
            "query_pre_attn_scalar": 48,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "tie_word_embeddings": True,
        },
    ),
    "Phi3ForCausalLM": ("phi3", {"tie_word_embeddings": True, "partial_rotary_factor": 0.75}),
    "GraniteForCausalLM": (
        "granite",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.1,
            "residual_multiplier": 0.6,
            "logits_scaling": 2.0,
        },
    ),
    "Olmo2ForCausalLM": ("olmo2", {}),
    "SmolLM3ForCausalLM": ("smollm3", {"no_rope_layers": [1, 0], "tie_word_embeddings": True}),
}
"""Transformers' name of the model, and how its configuration differs from `SIZES`."""


def tiny_config(architecture: str, **changes: Any) -> Any:
    """The configuration of a tiny model; `changes` of None leave an entry to its default."""
    model_type, own = OF_ARCHITECTURE[architecture]
    values = {**SIZES, **own, **changes}
    unset = [name for name, value in changes.items() if value is None]
    kept = {name: value for name, value in values.items() if name not in unset}
    return AutoConfig.for_model(model_type, architectures=[architecture], **kept)


def write_tiny_base(
    directory: Path, architecture: str, special_tokens: list[str], chat_template: str
) -> Path:
    """Write a checkpoint of random weights; its tokens are bytes and the special ones given.

    The first special token ends a turn. Biases and norms are random, too: at their usual start a
    model wouldn't show that one was left out.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(architecture), dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                size = 0.1 if "norm" in name else 0.5
                weight += size * torch.randn(weight.shape)
            if architecture == "Gemma3ForCausalLM" and "post_" in name:
                weight += 4  # or the scaled embedding would outweigh what the layers add
    model.to(torch.bfloat16).save_pretrained(directory)
    _tokenizer(special_tokens, chat_template).save_pretrained(directory)
    return directory


def _tokenizer(special_tokens: list[str], chat_template: str) -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE({text: index for index, text in enumerate(alphabet)}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.decoder = decoders.ByteLevel()
    plain.add_special_tokens([AddedToken(text, special=True) for text in special_tokens])
    end = special_tokens[0]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=end, pad_token=end)
    tokenizer.chat_template = chat_template
    return tokenizer
