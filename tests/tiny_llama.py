"""A Llama of random weights that can be trained and served in seconds, with a real tokenizer."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from server.bundled_base import ensure_bundled_base


def make_tiny_llama(directory: Path, hidden: int = 64, *, bytes_only: bool = False) -> Path:
    """Write one, with the bundled base's tokenizer and chat template.

    With `bytes_only` the vocabulary is of bytes and special tokens: a tiny model's time goes mostly
    into its head.
    """
    tokenizer = AutoTokenizer.from_pretrained(ensure_bundled_base())
    if bytes_only:
        tokenizer = tokenizer.train_new_from_iterator([], vocab_size=0)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
