"""LoRA operators for CPU that give each row its own adapter, and base rows none.

vLLM 0.32's CPU operators index slot -1, "no adapter", like any other slot and so apply the last
slot's adapter to base rows; and they gather one full A and B for every token. Here the rows of a
batch are grouped by slot, and each group is two plain matrix products (the grouping of Punica's
SGMV, Chen et al., 2023, arXiv:2310.18547).
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

Group = tuple[int, slice | torch.Tensor]
"""A slot, and the rows of the batch that use it: a slice where they are neighbours."""


def group_rows(slots: list[int]) -> list[Group]:
    """Group the rows of a batch by slot; rows without an adapter (-1) are in no group."""
    rows_of: dict[int, list[int]] = {}
    for row, slot in enumerate(slots):
        if slot >= 0:
            rows_of.setdefault(slot, []).append(row)
    groups: list[Group] = []
    for slot, rows in sorted(rows_of.items()):
        neighbours = rows[-1] - rows[0] + 1 == len(rows)
        groups.append((slot, slice(rows[0], rows[-1] + 1) if neighbours else torch.tensor(rows)))
    return groups


class GroupedPunicaWrapper(PunicaWrapperCPU):  # type: ignore[misc]
    """vLLM's interface to the LoRA operators, on grouped rows.

    Stacked weights have the shapes (slots, 1, rank, in) for A and (slots, 1, out, rank) for B.
    """

    token_groups: list[Group]
    sampler_groups: list[Group]

    def update_metadata(self, mapping: Any, *args: Any, **kwargs: Any) -> None:
        """Group this step's rows, once for all layers."""
        super().update_metadata(mapping, *args, **kwargs)
        self.token_groups = group_rows(self.token_lora_indices.tolist())
        self.sampler_groups = group_rows(self.sampler_indices.tolist())

    def add_shrink(
        self,
        y: tuple[torch.Tensor, ...] | torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        scale: float,
        **kwargs: Any,
    ) -> None:
        """`y[i] += x @ A[i].T * scale` for each projection i, rows by their own adapter."""
        x = x.view(-1, x.shape[-1])
        for target, weights in zip(y, lora_a_stacked, strict=True):
            flat = target.view(-1, target.shape[-1])
            for slot, rows in self.token_groups:
                flat[rows] += (x[rows] @ weights[slot, 0].T * scale).to(flat.dtype)

    def add_expand(
        self,
        y: torch.Tensor,
        x: tuple[torch.Tensor, ...] | torch.Tensor,
        lora_b_stacked: tuple[torch.Tensor, ...],
        output_slices: tuple[int, ...],
        offset_start: int = 0,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """`y[:, offset:offset + n] += x[i] @ B[i].T`; with `add_inputs` false, `=`."""
        flat, offset = y.view(-1, y.shape[-1]), offset_start
        for source, weights, width in zip(x, lora_b_stacked, output_slices, strict=True):
            target = flat[:, offset : offset + width]
            for slot, rows in self.token_groups:
                update = source[rows].to(weights.dtype) @ weights[slot, 0].T
                _add(target, rows, update.to(flat.dtype), add_inputs)
            offset += width

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[torch.Tensor, ...] | None = None,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """`y += x @ A.T @ B.T * scale` for each projection of a linear layer."""
        x, flat = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        for slot, rows in self.token_groups:
            inputs, offset = x[rows], 0
            for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                update = (inputs @ a[slot, 0].T * scale) @ b[slot, 0].T
                _add(flat[:, offset : offset + width], rows, update.to(flat.dtype), add_inputs)
                offset += width

    def add_lora_embedding(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """`y += x @ B.T`; x is already the rows of A that the tokens look up."""
        for slot, rows in self.token_groups:
            update = x[rows].to(lora_b_stacked.dtype) @ lora_b_stacked[slot, 0].T
            _add(y[:, : update.shape[-1]], rows, update.to(y.dtype), add_inputs)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        *,
        buffer: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        """`y += x @ A.T @ B.T * scale` on the logits, whose rows are the sampled positions."""
        flat, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        for slot, rows in self.sampler_groups:
            update = (x[rows] @ lora_a_stacked[slot, 0].T * scale) @ lora_b_stacked[slot, 0].T
            flat[rows, : update.shape[-1]] += update.to(flat.dtype)


def _add(
    target: torch.Tensor, rows: slice | torch.Tensor, update: torch.Tensor, add_inputs: bool
) -> None:
    if add_inputs:
        target[rows] += update
    else:
        target[rows] = update
