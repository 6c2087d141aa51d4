"""One layer's adapters at their own rank, packed as the kernel reads them.

An adapter is packed once, before it gets a slot: what a slot holds is a pointer to it. Packed,
its A of all projections that the layer fuses is one matrix, and both products read memory in order.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import accumulate

import torch

_LANES = 16


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


class PackedAdapter:
    """An adapter in one layer, in the order in which the kernel reads it; see `rows.c`."""

    def __init__(self, a: list[torch.Tensor], b: list[torch.Tensor], *, for_kernel: bool) -> None:
        """Pack A (rank, in) and B (out, rank) of each projection; or keep them, for products.

        Raises:
            ValueError: weights that aren't finite.
        """
        # A projection whose B is zero changes nothing: it needn't cost anything.
        ranks = [len(part) if other.any() else 0 for part, other in zip(a, b, strict=True)]
        a = [part[:rank] for part, rank in zip(a, ranks, strict=True)]
        b = [part[:, :rank] for part, rank in zip(b, ranks, strict=True)]
        self.parts: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.struct: _Adapter | None = None
        if for_kernel:
            self._tensors = [*_packed(a, b)]
            self.struct = self._make_struct([_round_up(rank, 2) for rank in ranks])
        else:
            self._tensors = [*a, *b]
            self.parts = list(zip(a, b, strict=True))
        if not all(tensor.isfinite().all() for tensor in self._tensors):
            raise ValueError("LoRA weights that aren't finite")

    def _make_struct(self, ranks: list[int]) -> _Adapter:
        a, b = self._tensors
        self._ranks = (ctypes.c_int64 * len(ranks))(*ranks)
        all_ranks = _round_up(sum(ranks), _LANES)
        return _Adapter(a.data_ptr(), b.data_ptr(), a.numel() + b.numel(), all_ranks, self._ranks)


def _packed(a: list[torch.Tensor], b: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    ranks = [_round_up(len(part), 2) for part in a]
    packed_a = _pack_a([_padded(part, rank, 0) for part, rank in zip(a, ranks, strict=True)])
    parts_b = [_pack_b(_padded(part, 0, rank)) for part, rank in zip(b, ranks, strict=True)]
    return packed_a, torch.cat(parts_b)


def _pack_a(parts: list[torch.Tensor]) -> torch.Tensor:
    """A's rows, all projections', in groups of lanes: (group, pair of features, lane, 2)."""
    rows, features = sum(len(part) for part in parts), parts[0].shape[1]
    a = _padded(torch.cat(parts), _round_up(rows, _LANES), _round_up(features, 2))
    return a.view(-1, _LANES, a.shape[1] // 2, 2).transpose(1, 2).contiguous()


def _pack_b(part: torch.Tensor) -> torch.Tensor:
    """One projection's B, flat: (pair of ranks, width, 2)."""
    b = _padded(part, _round_up(len(part), _LANES), 0)
    return b.view(len(b), b.shape[1] // 2, 2).transpose(0, 1).reshape(-1)


def _padded(part: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """With zeros up to so many rows and columns; 0: as they are."""
    right, below = max(0, columns - part.shape[1]), max(0, rows - len(part))
    return torch.nn.functional.pad(part, (0, right, 0, below))


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
        """Empty slots, of the shape of vLLM's tensors for this layer.

        These have all slots padded to `max_lora_rank`, for each projection that the layer fuses:
        A (slots, 1, rank, in) and B (slots, 1, out, rank). They are never written, and so take no
        memory.

        Raises:
            ValueError: tensors that don't belong together.
        """
        _check_shapes(lora_a_stacked, lora_b_stacked, widths)
        self.stacked = (lora_a_stacked, lora_b_stacked)
        self.widths = widths
        self.offsets = list(accumulate(widths, initial=0))[:-1]
        slots, _, max_rank, self.features = lora_a_stacked[0].shape
        self._max_rank = max_rank
        self.max_ranks = _round_up(_round_up(max_rank, 2) * len(widths), _LANES)
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
        """Pack an adapter's A (rank, in) and B (out, rank) of each projection; None: it has none.

        Raises:
            ValueError: shapes that don't fit this layer, or weights that aren't finite.
        """
        parts_a, parts_b = [], []
        for part_a, part_b, width in zip(a, b, self.widths, strict=True):
            if part_a is None or part_b is None:
                part_a = torch.empty(0, self.features, dtype=self.dtype)
                part_b = torch.empty(width, 0, dtype=self.dtype)
            self._check_part(part_a, part_b, width)
            parts_a.append(part_a.to(self.dtype))
            parts_b.append(part_b.to(self.dtype))
        return PackedAdapter(parts_a, parts_b, for_kernel=self.for_kernel)

    def _check_part(self, a: torch.Tensor, b: torch.Tensor, width: int) -> None:
        rank = len(a)
        fits = a.shape == (rank, self.features) and b.shape == (width, rank)
        if not fits or rank > self._max_rank:
            raise ValueError(
                f"A {tuple(a.shape)} and B {tuple(b.shape)} in a layer of {self.features} "
                f"features in, {width} out and rank {self._max_rank} at most"
            )

    def place(self, slot: int, adapter: PackedAdapter | None) -> None:
        """Put an adapter into a slot (`nothing`: one without this layer), or empty the slot."""
        struct = adapter.struct if adapter else None
        self._table[slot] = ctypes.pointer(struct) if struct else ctypes.POINTER(_Adapter)()
        self._adapters[slot] = adapter

    def adapter(self, slot: int) -> PackedAdapter:
        """The adapter in a slot.

        Raises:
            ValueError: there is none.
        """
        adapter = self._adapters[slot]
        if adapter is None:
            raise ValueError(f"LoRA slot {slot} is empty")
        return adapter


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


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
