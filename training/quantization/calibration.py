"""Computes the hidden states of sample texts in a base, one layer at a time."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from training.data.conversations import Conversation
from training.data.rendering import Renderer
from training.models.base_model import load_tokenizer

MAX_SAMPLE_TOKENS = 2048
BATCH_SIZE = 16
PADDING = -1


def sample_texts(base: Path, conversations: list[Conversation], number: int) -> list[list[int]]:
    """Return the token ids of `number` conversations, or of all. They are always the same ones.

    Raises:
        TrainingError: the base has no tokenizer with a chat template, or the template can't render
            a conversation.
    """
    renderer = Renderer(load_tokenizer(base))
    chosen = random.Random(0).sample(conversations, min(number, len(conversations)))
    return [renderer.encode(renderer.render(chat))[0][:MAX_SAMPLE_TOKENS] for chat in chosen]


class Calibration:
    """The samples' hidden states before the next layer.

    Samples of similar length make a batch, padded on the right. With causal attention a token
    depends only on earlier ones, so padding doesn't change it. The rows of padding are left out.
    """

    def __init__(
        self,
        config: dict[str, Any],
        embedding: torch.Tensor,
        samples: list[list[int]],
        dtype: torch.dtype | None = None,
    ) -> None:
        """Start before the first layer. `samples` are token ids. States have the type `dtype`."""
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        self._config = LlamaConfig(**config)
        self._config._attn_implementation = "sdpa"
        self._rotary = LlamaRotaryEmbedding(self._config)
        rows = sorted((torch.tensor(ids) for ids in samples), key=len)
        batches = [
            pad_sequence(rows[start : start + BATCH_SIZE], batch_first=True, padding_value=PADDING)
            for start in range(0, len(rows), BATCH_SIZE)
        ]
        self._is_text = [batch != PADDING for batch in batches]
        self._hidden = [embedding[batch.clamp(min=0)].to(dtype) for batch in batches]

    def layer(self, weights: dict[str, torch.Tensor]) -> Any:
        """Return a layer that uses the given tensors, so changing them changes the layer."""
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer

        with torch.device("meta"):
            layer = LlamaDecoderLayer(self._config, layer_idx=0)
        layer.load_state_dict(weights, assign=True)
        return layer.requires_grad_(False).eval()

    def moments(self, layer: Any, modules: list[str]) -> dict[str, torch.Tensor]:
        """Return, for each linear module, the sum of its inputs' outer products in float32."""
        totals, fed = {}, {}
        for module in modules:
            linear = layer.get_submodule(module)
            totals[module] = torch.zeros(linear.in_features, linear.in_features)
            linear.register_forward_pre_hook(
                lambda _, inputs, module=module: fed.update({module: inputs[0]})
            )
        for hidden, is_text in zip(self._hidden, self._is_text, strict=True):
            self._run(layer, hidden)
            for module, inputs in fed.items():
                rows = inputs[is_text].float()
                totals[module].addmm_(rows.T, rows)
        return totals

    def advance(self, layer: Any) -> None:
        """Compute the samples' states after a layer."""
        self._hidden = [self._run(layer, hidden) for hidden in self._hidden]

    def outputs(self, norm: torch.Tensor) -> torch.Tensor:
        """Return the final states, normalised with the weight `norm`: shape (tokens, hidden).

        Call it after the last layer. The texts follow each other.
        """
        pairs = zip(self._hidden, self._is_text, strict=True)
        states = torch.cat([hidden[is_text] for hidden, is_text in pairs])
        variance = states.square().mean(-1, keepdim=True)
        return norm * (states * torch.rsqrt(variance + self._config.rms_norm_eps))

    @torch.no_grad()
    def _run(self, layer: Any, hidden: torch.Tensor) -> Any:
        positions = torch.arange(hidden.shape[1])[None]
        return layer(hidden, position_embeddings=self._rotary(hidden, positions))
