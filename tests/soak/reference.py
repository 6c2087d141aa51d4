"""Golden answers, computed by Transformers in float32: each adapter for itself, without the server.

All adapters are computed as one batch, in which each sequence has weights of its own. On the
server, one after the other, they would take many times as long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load
from transformers import AutoModelForCausalLM, AutoTokenizer

from loadtest.outcome.golden import GoldenAnswer
from loadtest.outcome.streams import Token
from server.bundled_base import ensure_bundled_base
from tests.soak.golden import GOLDEN_TOKENS
from tests.soak.questions import PROMPTS
from tests.soak.truth import BASE
from tests.soak.weights import RANK, files_of

LIKELIEST = 5
BATCH = 50
_PREFIX = "base_model.model."
Pair = tuple[np.ndarray, np.ndarray]
"""A and B of a module, with the weight of the content in B."""


def terms_of(content: str) -> list[tuple[int, float]]:
    """Return the numbers that a content adds up, with their weights. The base adds nothing."""
    if content == BASE:
        return []
    parts = (term.partition("*") for term in content.split("+"))
    return [(int(number), float(weight or 1)) for number, _, weight in parts]


def changes_of(content: str) -> dict[str, Pair]:
    """Return what a content changes, by module."""
    by_module: dict[str, list[Pair]] = {}
    for number, weight in terms_of(content):
        tensors = load(files_of(number)["adapter_model.safetensors"])
        for key, a in tensors.items():
            if key.endswith(".lora_A.weight"):
                name = key.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
                b = tensors[key.replace("lora_A", "lora_B")]
                by_module.setdefault(name, []).append((a, weight * b))
    return {
        name: (np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs], axis=1))
        for name, pairs in by_module.items()
    }


class Reference:
    """The bundled base, on which each sequence of a batch has its own adapter."""

    def __init__(self) -> None:
        """Load the base."""
        directory = ensure_bundled_base()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        self._model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)

    def answers(
        self, contents: Sequence[str], prompt: int
    ) -> Iterator[list[tuple[str, GoldenAnswer]]]:
        """Yield contents with their greedy answers to a golden prompt, a batch at a time."""
        for start in range(0, len(contents), BATCH):
            some = contents[start : start + BATCH]
            yield list(zip(some, self._batch(some, self._ids(prompt)), strict=True))

    def _ids(self, prompt: int) -> list[int]:
        if prompt == 0:
            return list(self._tokenizer(PROMPTS[prompt]).input_ids)
        messages = [{"role": "user", "content": PROMPTS[prompt]}]
        text = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    @torch.inference_mode()
    def _batch(self, contents: Sequence[str], ids: list[int]) -> list[GoldenAnswer]:
        hooks = [
            self._model.get_submodule(name).register_forward_hook(partial(_add, a, b))
            for name, (a, b) in _stacked([changes_of(content) for content in contents]).items()
        ]
        try:
            return self._generate(torch.tensor([ids] * len(contents)))
        finally:
            for hook in hooks:
                hook.remove()

    def _generate(self, ids: torch.Tensor) -> list[GoldenAnswer]:
        tokens: list[list[Token]] = [[] for _ in ids]
        cache = None
        for _ in range(GOLDEN_TOKENS):
            out = self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            top = out.logits[:, -1].log_softmax(-1).topk(LIKELIEST)
            for row, values, chosen in zip(tokens, top.values, top.indices, strict=True):
                texts = [self._tokenizer.decode([number]) for number in chosen]
                likeliest = dict(zip(texts, values.tolist(), strict=True))
                row.append(Token(texts[0], float(values[0]), likeliest))
            ids = top.indices[:, :1]
        return [GoldenAnswer("".join(t.text for t in row), tuple(row)) for row in tokens]


def _add(a: torch.Tensor, b: torch.Tensor, _: Any, inputs: Any, output: torch.Tensor) -> Any:
    """Add each sequence's own product to a layer's output."""
    return output + torch.einsum("bsr,bor->bso", torch.einsum("bsi,bri->bsr", inputs[0], a), b)


def _stacked(changes: list[dict[str, Pair]]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return A and B of all sequences by module, of one rank: what is missing is zero."""
    rank, stacked = 2 * RANK, {}
    for name, (a, b) in next((each for each in changes if each), {}).items():
        all_a = np.zeros((len(changes), rank, a.shape[1]), np.float32)
        all_b = np.zeros((len(changes), b.shape[0], rank), np.float32)
        for row, change in enumerate(changes):
            if name in change:
                own_a, own_b = change[name]
                all_a[row, : len(own_a)], all_b[row, :, : own_b.shape[1]] = own_a, own_b
        stacked[name] = torch.from_numpy(all_a), torch.from_numpy(all_b)
    return stacked
