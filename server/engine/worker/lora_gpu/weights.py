"""Describes to the kernels a wrapped layer's stacked weights and the ranks in each slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

ALIGNED_ELEMENTS = 8
"""Numbers of 16 bits that one thread loads at once: 16 bytes."""


@dataclass(frozen=True)
class Shape:
    """The shape of a layer. Together with the number of rows it decides the tile sizes."""

    features: int
    outputs: tuple[int, ...]
    """The width of each slice of the output."""
    max_rank: int

    @property
    def num_slices(self) -> int:
        """Return the number of projections that share the layer's input: 3 for q, k and v."""
        return len(self.outputs)

    @property
    def max_columns(self) -> int:
        """Return the sum of the ranks of all slices, for the largest adapter."""
        return self.num_slices * self.max_rank

    @property
    def label(self) -> str:
        """Return features, outputs and rank as text for logs and tables."""
        return f"{self.features} -> {'+'.join(map(str, self.outputs))}, rank {self.max_rank}"


class LayerWeights:
    """One layer's stacks: for each slice A (slots, 1, rank, in) and B (slots, 1, out, rank).

    Slices are separate tensors, so the kernels get each one's distance from the first.
    """

    def __init__(self, a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> None:
        """Read the stacks. Each slot has the largest rank until `SlotRanks` sets its ranks.

        That gives right results, because slots are padded with zeros.

        Raises:
            ValueError: the kernels can't read the stacks.
        """
        _check(a, b)
        num_slots, _, max_rank, features = a[0].shape
        self.shape = Shape(features, tuple(each.shape[2] for each in b), max_rank)
        self.a_slot_stride = a[0].stride(0)
        self.dtype = a[0].dtype
        size = a[0].element_size()
        geometry = [
            [
                (a_slice.data_ptr() - a[0].data_ptr()) // size,
                (b_slice.data_ptr() - b[0].data_ptr()) // size,
                b_slice.stride(0),
                b_slice.shape[2],
            ]
            for a_slice, b_slice in zip(a, b, strict=True)
        ]
        self.aligned = all(
            value % ALIGNED_ELEMENTS == 0
            for row in [*geometry, [features, max_rank, a[0].stride(0)]]
            for value in row
        )
        self._geometry = geometry
        self._first = a[0].data_ptr(), b[0].data_ptr()
        self._number_bytes = size
        self.geometry = torch.tensor(geometry, dtype=torch.int64).to(a[0].device)
        full = [max_rank * (i + 1) for i in range(len(a))]
        self.ends = torch.tensor([full] * num_slots, dtype=torch.int32).to(a[0].device)

    def distance(self, base: LayerWeights, i: int) -> tuple[int, int]:
        """Return the distance, in numbers, of slice i of A and of B from `base`'s first A."""
        a, b = (
            (first - base._first[0]) // self._number_bytes + offset
            for first, offset in zip(self._first, self._geometry[i][:2], strict=True)
        )
        return a, b

    def b_slot_stride(self, i: int) -> int:
        """Return the distance between slots in slice i of B, in numbers."""
        return self._geometry[i][2]


class SlotRanks:
    """The ranks of the adapters in all slots and layers, on the GPU. One copy sets a slot's ranks.

    `ends[slot, layer, i]` is the sum of the adapter's ranks over the layer's slices 0 to i.
    """

    def __init__(self, layers: Sequence[LayerWeights], num_slots: int) -> None:
        """Replace the layers' own `ends` by parts of one table."""
        most = max(layer.shape.num_slices for layer in layers)
        self._layers = list(layers)
        self._limits = np.array(
            [
                [layer.shape.max_rank if i < layer.shape.num_slices else 0 for i in range(most)]
                for layer in layers
            ],
            np.int32,
        )
        device = layers[0].ends.device
        self._pinned = device.type == "cuda"
        self._ends = torch.zeros((num_slots, *self._limits.shape), dtype=torch.int32, device=device)
        for slot in range(num_slots):
            self._copy(slot, self._limits)
        for i, layer in enumerate(layers):
            layer.ends = self._ends[:, i, : layer.shape.num_slices]

    def set(self, slot: int, ranks: Sequence[Sequence[int]]) -> None:
        """Set a slot's rank in each layer and slice, 0 for a slice that the adapter doesn't change.

        The slot must hold zeros between a rank and the next multiple of 8.

        Raises:
            ValueError: a rank is larger than the stacks allow.
        """
        padded = np.zeros_like(self._limits)
        for i, (layer, of_slices) in enumerate(zip(self._layers, ranks, strict=True)):
            if len(of_slices) != layer.shape.num_slices:
                raise ValueError(f"ranks {list(of_slices)} in a layer of {layer.shape.label}")
            padded[i, : len(of_slices)] = of_slices
        if (padded < 0).any() or (padded > self._limits).any():
            raise ValueError("an adapter's rank is over that of the slots")
        self._copy(slot, np.minimum(round_up(padded), self._limits))

    def _copy(self, slot: int, ranks: NDArray[np.int32]) -> None:
        ends = torch.empty(ranks.shape, dtype=torch.int32, device="cpu", pin_memory=self._pinned)
        ends.copy_(torch.from_numpy(np.cumsum(ranks, axis=1, dtype=np.int32)))
        self._ends[slot].copy_(ends, non_blocking=True)


def round_up(ranks: NDArray[np.int32]) -> NDArray[np.int32]:
    """Round ranks up to a multiple of what a thread loads at once."""
    return -(-ranks // ALIGNED_ELEMENTS) * ALIGNED_ELEMENTS


def _check(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> None:
    if not a or len(a) != len(b):
        raise ValueError(f"{len(a)} slices of A and {len(b)} of B")
    for a_slice, b_slice in zip(a, b, strict=True):
        if a_slice.shape != a[0].shape or a_slice.dim() != 4 or b_slice.dim() != 4:
            raise ValueError("slices of A that differ in shape, or stacks without four dimensions")
        if b_slice.shape[0] != a[0].shape[0] or b_slice.shape[3] != a[0].shape[2]:
            raise ValueError("stacks of A and B that differ in slots or rank")
        if not a_slice.is_contiguous() or not b_slice.is_contiguous():
            raise ValueError("stacks that aren't contiguous")
        if not a_slice.dtype == b_slice.dtype == a[0].dtype:
            raise ValueError("stacks of different types")
