"""Puts the compiled decoder in the place of vLLM's layers, for steps in which it may be used."""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from vllm.forward_context import get_forward_context
from vllm.model_executor.models.llama import LlamaModel

from server.engine.worker.compiled import KernelUnavailable
from server.engine.worker.decoder_cpu.kernel import (
    FEW_ROWS_OF_REQUEST,
    MOST_PROMPT_ROWS,
    MOST_PROMPT_TOKENS,
    Batch,
    Decoder,
)
from server.engine.worker.decoder_cpu.reading import DoesNotFit, read_decoder
from server.engine.worker.lora_cpu.steps import Block

log = logging.getLogger(__name__)

Forward = Callable[..., Any]

_NO_ADAPTERS = (Block * 0)()


def replace_layers() -> None:
    """Make each `LlamaModel` in this process use the compiled decoder where it can."""
    LlamaModel.forward = with_decoder(LlamaModel.forward)


def with_decoder(forward: Forward) -> Forward:
    """Return a `forward` of a model that takes the short way in steps which allow it."""

    @functools.wraps(forward)
    def forward_shortly(
        model: Any,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any,
        inputs_embeds: torch.Tensor | None = None,
        **others: Any,
    ) -> Any:
        batch = _batch(model, positions) if not others and intermediate_tensors is None else None
        decoder = None if batch is None else _decoder(model, batch)
        if batch is None or decoder is None:
            return forward(
                model, input_ids, positions, intermediate_tensors, inputs_embeds, **others
            )
        embeddings = model.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        return decoder.decode(embeddings, batch)

    return forward_shortly


def _batch(model: Any, positions: torch.Tensor) -> Batch | None:
    """Return the step that vLLM has prepared, if it is one that is computed here."""
    steps = get_forward_context().attn_metadata
    first = model.layers[0]
    step = steps.get(first.self_attn.attn.layer_name) if isinstance(steps, dict) else None
    if (
        step is None
        or step.num_actual_tokens != len(positions)
        or step.causal is not True
        or step.dynamic_causal is not None
    ):
        return None
    if step.max_query_len == 1:
        lengths, tables = step.seq_lens, step.block_table
    elif len(positions) <= MOST_PROMPT_ROWS and (
        step.max_seq_len <= MOST_PROMPT_TOKENS or step.max_query_len <= FEW_ROWS_OF_REQUEST
    ):
        lengths, tables = (positions + 1).to(torch.int32), step.block_table[_requests(step)]
    else:
        return None
    blocks = _rows_with_adapters(first.self_attn.qkv_proj)
    return Batch(positions, step.slot_mapping, lengths, tables, blocks)


def _requests(step: Any) -> torch.Tensor:
    """Return which request each row belongs to."""
    counts = step.query_start_loc.diff()
    return torch.repeat_interleave(torch.arange(len(counts)), counts)


def _rows_with_adapters(layer: Any) -> ctypes.Array[Block]:
    punica = getattr(layer, "punica_wrapper", None)
    return _NO_ADAPTERS if punica is None else punica.step.blocks


def _decoder(model: Any, step: Batch) -> Decoder | None:
    """Return the model's compiled decoder, which is made in its first step."""
    if not hasattr(model, "loraplex_decoder"):
        model.loraplex_decoder = None
        try:
            model.loraplex_decoder = read_decoder(model, step)
        except (DoesNotFit, KernelUnavailable) as reason:
            log.info("single tokens take vLLM's layers: %s", reason)
    decoder: Decoder | None = model.loraplex_decoder
    return decoder
