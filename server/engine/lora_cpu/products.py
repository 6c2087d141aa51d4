"""A group of rows that share an adapter: two matrix products, projections that share x fused."""

from __future__ import annotations

import torch

from server.engine.lora_cpu.packing import PackedAdapter, PackedLayer


def add_products(
    y: torch.Tensor,
    x: torch.Tensor,
    layer: PackedLayer,
    adapter: PackedAdapter,
    rows: slice | torch.Tensor,
    scale: float,
) -> None:
    """`y[rows] += scale * (x[rows] @ A.T) @ B.T`, for x (rows, in) and y (rows, sum of outs)."""
    if not any(adapter.ranks):
        return
    shrunk = x[rows] @ adapter.a.T
    if scale != 1.0:
        shrunk *= scale
    for part, b, offset, width in zip(
        shrunk.split_with_sizes(adapter.ranks, dim=1),
        adapter.b,
        layer.offsets,
        layer.widths,
        strict=True,
    ):
        target = y[:, offset : offset + width]
        if not len(b):
            continue
        if isinstance(rows, slice):
            target[rows].addmm_(part, b)
        else:
            target.index_add_(0, rows, part @ b)
