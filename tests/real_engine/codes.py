"""A tiny Llama, and adapters whose answers are short, sure and distinct: each repeats its code.

Nothing is trained: the weights are written down. A token is a byte, its hidden state a one-hot
vector; the MLP is a table from each byte to the next, and an adapter changes the five entries that
spell its code, so that a greedy answer is exact in any batch. Attention is uniform, and values say
which model computed them: an answer that reads keys and values of another model than its own
turns into exclamation marks.
"""

from __future__ import annotations

import itertools
import json
import string
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

MAX_ADAPTERS = 120
BASE_CODE = "bang"

_BYTES, _HIDDEN, _HEAD = 256, 512, 128
_ALARM = _BYTES
"""The hidden dimension that says: not my own values."""
_STEP, _VALUE, _LOUD = 1 / 16, 1 / 16, 64.0
"""Powers of two: sums and differences of them are exact in bfloat16."""
_BASE_MARK, _UNUSED_MARK = 0, _HEAD - 1


def code_of(number: int) -> str:
    """The code of an adapter, from 1: four letters, each another."""
    codes = itertools.permutations("cdefhijklmopqrstuvwxyz", 4)
    return "".join(next(itertools.islice(codes, 311 * number, None)))


def answer(code: str, num_tokens: int) -> str:
    """What a model of this code says after a space."""
    return (f"{code} " * num_tokens)[:num_tokens]


def write_base(directory: Path) -> None:
    """The base and its tokenizer."""
    config = LlamaConfig(
        vocab_size=_BYTES,
        hidden_size=_HIDDEN,
        intermediate_size=_BYTES,
        num_hidden_layers=1,
        num_attention_heads=_HIDDEN // _HEAD,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).requires_grad_(False)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            weight.zero_()
    layer, one_hot = model.model.layers[0], torch.eye(_BYTES)
    model.model.embed_tokens.weight[:, :_BYTES] = one_hot
    layer.self_attn.v_proj.weight[_BASE_MARK, :_BYTES] = _VALUE
    layer.self_attn.v_proj.weight[_UNUSED_MARK, :_BYTES] = 1.0
    layer.self_attn.o_proj.weight[_ALARM, 1:_UNUSED_MARK] = _LOUD
    layer.mlp.gate_proj.weight[:, :_BYTES] = one_hot
    layer.mlp.up_proj.weight[:, :_BYTES] = one_hot
    follows = _follows(BASE_CODE)
    for token in range(_BYTES):
        layer.mlp.down_proj.weight[follows.get(token, _id(BASE_CODE[0])), token] = _STEP
    # Read by nobody: beside it what adapters change is small, as the gate wants it.
    layer.mlp.down_proj.weight[_HIDDEN - 1, _id("~")] = 4.0
    model.lm_head.weight[:, :_BYTES] = one_hot
    model.lm_head.weight[_id("!"), _ALARM] = 4.0
    model.to(torch.bfloat16).save_pretrained(directory)
    _tokenizer().save_pretrained(directory)


def write_adapter(directory: Path, number: int) -> None:
    """The adapter of a number from 1, as PEFT saves one."""
    base, own = _follows(BASE_CODE), _follows(code_of(number))
    down_a, down_b = torch.zeros(len(own), _BYTES), torch.zeros(_HIDDEN, len(own))
    for row, (token, following) in enumerate(own.items()):
        down_a[row, token] = 1.0
        down_b[following, row] += _STEP
        down_b[base.get(token, _id(BASE_CODE[0])), row] -= _STEP
    # All letters are a little less unlikely after a space: the canary must see some effect.
    down_b[[_id(letter) for letter in string.ascii_lowercase], len(own) - 1] += _STEP / 16
    value_a, value_b = torch.zeros(len(own), _HIDDEN), torch.zeros(_HEAD, len(own))
    value_a[0, :_BYTES], value_b[_BASE_MARK, 0], value_b[number, 0] = 1.0, -_VALUE, _VALUE
    alarm_a, alarm_b = torch.zeros(len(own), _HIDDEN), torch.zeros(_HIDDEN, len(own))
    alarm_a[0, _BASE_MARK], alarm_a[0, number], alarm_b[_ALARM, 0] = 1.0, -1.0, _LOUD
    modules = {
        "mlp.down_proj": (down_a, down_b),
        "self_attn.v_proj": (value_a, value_b),
        "self_attn.o_proj": (alarm_a, alarm_b),
    }
    tensors = {
        f"base_model.model.model.layers.0.{module}.lora_{part}.weight": weight
        for module, pair in modules.items()
        for part, weight in zip("AB", pair, strict=True)
    }
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": len(own),
        "lora_alpha": len(own),
        "target_modules": ["down_proj", "o_proj", "v_proj"],
    }
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps(config))


def _follows(code: str) -> dict[int, int]:
    """Which byte comes after which."""
    letters = [_id(letter) for letter in f"{code} "]
    return dict(zip(letters, [*letters[1:], letters[0]], strict=True))


def _alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _id(letter: str) -> int:
    return _alphabet().index("Ġ" if letter == " " else letter)


def _tokenizer() -> PreTrainedTokenizerFast:
    """Each byte a token."""
    vocabulary = {letter: token for token, letter in enumerate(_alphabet())}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
