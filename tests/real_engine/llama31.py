"""A tiny checkpoint in Llama 3.1 Instruct's shape: its traits, special tokens and ids, all random.

Written as Meta's checkpoints are (`rope_scaling` beside `rope_theta`, weights in several files);
saving the configuration with transformers 5 would write another form.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.llama import BEGIN_OF_TEXT, END_OF_TEXT, EOM, EOT, LLAMA31_8B, LLAMA32_1B

NUM_PLAIN_TOKENS, NUM_SPECIAL_TOKENS = 128000, 256

_CUT = {
    "hidden_size": 128,
    "initializer_range": 0.12,  # answers differ enough to tell models apart
    "intermediate_size": 448,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
}
LLAMA31 = LLAMA31_8B | _CUT
LLAMA32 = LLAMA32_1B | _CUT

_GENERATION = {
    "bos_token_id": BEGIN_OF_TEXT,
    "do_sample": True,
    "eos_token_id": [END_OF_TEXT, EOM, EOT],
    "temperature": 0.6,
    "top_p": 0.9,
}

_NAMED_SPECIAL_TOKENS = {
    128000: "begin_of_text",
    128001: "end_of_text",
    128004: "finetune_right_pad_id",
    128006: "start_header_id",
    128007: "end_header_id",
    128008: "eom_id",
    128009: "eot_id",
    128010: "python_tag",
}

_WORDS = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 cuts text before merging bytes."""


def write_checkpoint(directory: Path, config: dict[str, Any]) -> Path:
    """Random weights, tokenizer and chat template in `directory`."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**config)).to(torch.bfloat16)
    model.save_pretrained(directory, max_shard_size="20MB")
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "generation_config.json").write_text(json.dumps(_GENERATION))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(),
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        model_max_length=config["max_position_embeddings"],
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.chat_template = Path(__file__).with_name("llama31.jinja").read_text()
    tokenizer.save_pretrained(directory)
    return directory


def _tokenizer() -> Tokenizer:
    """Bytes and no merges; tokens that no text has fill the vocabulary up to Llama 3's size."""
    plain = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain += [f"unused{index}" for index in range(NUM_PLAIN_TOKENS - len(plain))]
    vocabulary = {token: index for index, token in enumerate(plain)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORDS, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special_tokens()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", BEGIN_OF_TEXT)]
    )
    return tokenizer


def special_tokens() -> list[str]:
    """Llama 3.1's 256 special tokens, in the order of their ids."""
    ids = range(NUM_PLAIN_TOKENS, NUM_PLAIN_TOKENS + NUM_SPECIAL_TOKENS)
    numbers = iter(range(NUM_SPECIAL_TOKENS))
    return [
        f"<|{_NAMED_SPECIAL_TOKENS.get(token) or f'reserved_special_token_{next(numbers)}'}|>"
        for token in ids
    ]
