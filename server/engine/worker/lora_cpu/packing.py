"""One layer's adapters at their own rank, packed as the kernel reads them.

An adapter is packed once, before it gets a slot. A slot holds only a pointer to it. In packed form
all A of the projections that the layer fuses are one matrix, and both products read memory in
order.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch

LANES = 16


class _Adapter(ctypes.Structure):
    """`adapter_t` of `rows.c`."""

    _fields_ = (
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("ranks", ctypes.c_int64),
        ("rank", ctypes.POINTER(ctypes.c_int64)),
    )


class _Layer(ctypes.Structure):
    """`layer_t` of `rows.c`."""

    _fields_ = (
        ("in_", ctypes.c_int64),
        ("max_ranks", ctypes.c_int64),
        ("projections", ctypes.c_int64),
        ("width", ctypes.POINTER(ctypes.c_int64)),
        ("adapter", ctypes.POINTER(ctypes.POINTER(_Adapter))),
    )


@dataclass(frozen=True)
class Layout:
    """Where an adapter's numbers are in one layer, packed for the kernel: A, then B."""

    ranks: list[int]
    """Rank of each projection, padded to a multiple of 2."""
    a_numbers: int
    b_numbers: list[int]
    """Numbers in each projection's B."""

    @classmethod
    def of(cls, ranks: Sequence[int], features: int, widths: Sequence[int]) -> Layout:
        """Return the layout for these ranks."""
        padded = [round_up(rank, 2) for rank in ranks]
        a_numbers = sum(padded) * round_up(features, LANES)
        b_numbers = [r * round_up(w, LANES) for r, w in zip(padded, widths, strict=True)]
        return cls(padded, a_numbers, b_numbers)

    @cached_property
    def ranks_array(self) -> ctypes.Array[ctypes.c_int64]:
        """Return the ranks as the kernel reads them."""
        return (ctypes.c_int64 * len(self.ranks))(*self.ranks)

    @property
    def numbers(self) -> int:
        """Return how many numbers A and B have together."""
        return self.a_numbers + sum(self.b_numbers)


class PackedAdapter:
    """An adapter in one layer: its address for the kernel, or its A and B for matrix products."""

    def __init__(
        self, parts: list[tuple[torch.Tensor, torch.Tensor]], struct: _Adapter | None = None
    ) -> None:
        """Keep A (rank, in) and B (out, rank) of each projection, or the address of packed ones."""
        self.parts = parts
        self.struct = struct
        self._owner: object = None

    @classmethod
    def in_memory(cls, address: int, layout: Layout, owner: object) -> PackedAdapter:
        """Return an adapter whose A and B are at an address, in memory that `owner` keeps."""
        b = address + 2 * layout.a_numbers
        struct = _Adapter(address, b, layout.numbers, sum(layout.ranks), layout.ranks_array)
        adapter = cls([], struct)
        adapter._owner = owner
        return adapter


class PackedLayer:
    """The slots of one layer."""

    def __init__(
        self,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        widths: tuple[int, ...],
        *,
        for_kernel: bool,
    ) -> None:
        """Make empty slots with the shapes of vLLM's tensors for this layer.

        vLLM's tensors are A (slots, 1, rank, in) and B (slots, 1, out, rank) for each projection
        that the layer fuses, padded to `max_lora_rank`. They take no memory, because they are never
        written.

        Raises:
            ValueError: the tensors do not belong together.
        """
        _check_shapes(lora_a_stacked, lora_b_stacked, widths)
        self.stacked = (lora_a_stacked, lora_b_stacked)
        self.widths = widths
        self.offsets = list(accumulate(widths, initial=0))[:-1]
        slots, _, self.max_rank, self.features = lora_a_stacked[0].shape
        self.max_ranks = round_up(round_up(self.max_rank, 2) * len(widths), LANES)
        self.dtype = lora_a_stacked[0].dtype
        self.for_kernel = for_kernel and self.dtype == torch.bfloat16
        self._adapters: list[PackedAdapter | None] = [None] * slots
        self._width = (ctypes.c_int64 * len(widths))(*widths)
        self._table = (ctypes.POINTER(_Adapter) * slots)()
        self._struct = _Layer(self.features, self.max_ranks, len(widths), self._width, self._table)
        self.address = ctypes.addressof(self._struct)
        self.nothing = self.pack([None] * len(widths), [None] * len(widths))

    def pack(
        self, a: Sequence[torch.Tensor | None], b: Sequence[torch.Tensor | None]
    ) -> PackedAdapter:
        """Pack an adapter's A (rank, in) and B (out, rank) of each projection, None if missing.

        NaN among the weights is packed like any value: it affects only the adapter's own rows,
        while an error inside a step would end the engine for all requests.

        Raises:
            ValueError: the shapes do not fit this layer.
        """
        parts = []
        for part_a, part_b, width in zip(a, b, self.widths, strict=True):
            # A projection whose B is zero changes nothing, so it is left out.
            if part_a is None or part_b is None or not part_b.any():
                part_a = torch.empty(0, self.features)
                part_b = torch.empty(width, 0)
            self.check_shapes(tuple(part_a.shape), tuple(part_b.shape), width)
            parts.append((part_a.to(self.dtype), part_b.to(self.dtype)))
        return self._packed(parts) if self.for_kernel else PackedAdapter(parts)

    def _packed(self, parts: list[tuple[torch.Tensor, torch.Tensor]]) -> PackedAdapter:
        layout = Layout.of([len(a) for a, _ in parts], self.features, self.widths)
        ranks = zip(parts, layout.ranks, strict=True)
        padded = [(_padded(a, rank, 0), _padded(b, 0, rank)) for (a, b), rank in ranks]
        packed = [_pack_a([a for a, _ in padded]), *(_pack_b(b) for _, b in padded)]
        numbers = torch.cat(packed)
        return PackedAdapter.in_memory(numbers.data_ptr(), layout, numbers)

    def check_shapes(self, a: tuple[int, ...], b: tuple[int, ...], width: int) -> None:
        """Raise ValueError if A and B do not fit a projection of this layer."""
        if a != (a[0], self.features) or b != (width, a[0]) or a[0] > self.max_rank:
            raise ValueError(
                f"A {a} and B {b} in a layer of {self.features} features in, {width} out and "
                f"rank {self.max_rank} at most"
            )

    def place(self, slot: int, adapter: PackedAdapter | None) -> None:
        """Put an adapter into a slot, or empty the slot.

        `nothing` is for an adapter that doesn't change this layer.
        """
        struct = adapter.struct if adapter else None
        self._table[slot] = ctypes.pointer(struct) if struct else ctypes.POINTER(_Adapter)()
        self._adapters[slot] = adapter

    def adapter(self, slot: int) -> PackedAdapter:
        """Return the adapter in a slot.

        Raises:
            ValueError: the slot is empty.
        """
        adapter = self._adapters[slot]
        if adapter is None:
            raise ValueError(f"LoRA slot {slot} is empty")
        return adapter


def round_up(value: int, multiple: int) -> int:
    """Return a value rounded up to the next multiple."""
    return -(-value // multiple) * multiple


def group_widths(ranks: int) -> list[int]:
    """Return how many ranks each group of A has, of an even number: 16, and what is left."""
    left = [width for width in (8, 4, 2) if ranks % LANES & width]
    return [LANES] * (ranks // LANES) + left


def _pack_a(parts: list[torch.Tensor]) -> torch.Tensor:
    """Return A's rows of all projections as flat numbers, one group after the other.

    A group is in the order (vector, rank, pair of features in the vector, 2).
    """
    a = _padded(torch.cat(parts), 0, round_up(parts[0].shape[1], LANES))
    flat = a.new_empty(0)
    for part in torch.split(a, group_widths(len(a))) if len(a) else ():
        vectors = part.view(len(part), -1, LANES // len(part), 2).transpose(0, 1)
        flat = torch.cat([flat, vectors.reshape(-1)])
    return flat


def _pack_b(part: torch.Tensor) -> torch.Tensor:
    """Return one projection's B as flat numbers in the order (pair of ranks, width, 2)."""
    b = _padded(part, round_up(len(part), LANES), 0)
    return b.view(len(b), b.shape[1] // 2, 2).transpose(0, 1).reshape(-1)


def _padded(part: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Return a matrix padded with zeros to `rows` and `columns`. 0 keeps its own number."""
    right, below = max(0, columns - part.shape[1]), max(0, rows - len(part))
    return torch.nn.functional.pad(part, (0, right, 0, below))


def _check_shapes(
    a_stacked: tuple[torch.Tensor, ...],
    b_stacked: tuple[torch.Tensor, ...],
    widths: tuple[int, ...],
) -> None:
    slots, _, rank, features = a_stacked[0].shape
    for a, b, width in zip(a_stacked, b_stacked, widths, strict=True):
        if a.shape != (slots, 1, rank, features) or b.shape != (slots, 1, width, rank):
            raise ValueError(f"A {tuple(a.shape)} and B {tuple(b.shape)} for {width} features out")
        if a.dtype != b.dtype:
            raise ValueError(f"A is {a.dtype}, B {b.dtype}")
