"""Runs vLLM's own kernels behind our operator, if our kernels have failed their self-check."""

from __future__ import annotations

import torch
from vllm.lora.ops.triton_ops.lora_expand_op import _lora_expand
from vllm.lora.ops.triton_ops.lora_shrink_op import _lora_shrink


def add_with_vllm(
    y: torch.Tensor,
    x: torch.Tensor,
    a: list[torch.Tensor],
    b: list[torch.Tensor],
    slots: torch.Tensor,
    rows: torch.Tensor,
    counts: torch.Tensor,
    starts: torch.Tensor,
    ids: torch.Tensor,
    no_lora: torch.Tensor,
    num_groups: torch.Tensor,
    scale: float,
    add_inputs: bool,
) -> None:
    """Compute the same as `Operators.add_lora` with vLLM's kernels.

    They check the number of rows, so slots and rows are cut to that of x.
    """
    groups = (slots[: len(x)], rows[: len(x)], counts, starts, ids, no_lora, num_groups)
    products = torch.empty((len(a), len(x), b[0].shape[-1]), dtype=torch.float32, device=x.device)
    _lora_shrink(x, a, products, *groups, scale)
    _lora_expand(products, b, y, *groups, offset_start=0, add_inputs=add_inputs)
