"""Computes LoRA without the compiled kernel: two matrix products a group and projection."""

from __future__ import annotations

import torch

from server.engine.worker.lora_cpu.packing import PackedAdapter, PackedLayer


def add_products(
    y: torch.Tensor,
    x: torch.Tensor,
    layer: PackedLayer,
    adapter: PackedAdapter,
    rows: slice | torch.Tensor,
    scale: float,
) -> None:
    """Compute `y[rows] += scale * (x[rows] @ A.T) @ B.T`; x: (rows, in), y: (rows, sum of outs)."""
    x = x[rows]
    for (a, b), offset, width in zip(adapter.parts, layer.offsets, layer.widths, strict=True):
        if not len(a):
            continue
        target, shrunk = y[:, offset : offset + width], x @ a.T * scale
        if isinstance(rows, slice):
            target[rows].addmm_(shrunk, b.T)
        else:
            target.index_add_(0, rows, shrunk @ b.T)
