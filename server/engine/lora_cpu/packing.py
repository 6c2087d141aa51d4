"""One layer's adapters at their own rank, packed when they are first used after a load.

vLLM keeps a layer's adapters in stacked tensors, padded with zeros to `max_lora_rank`: for each of
the projections that the layer fuses, A (slots, 1, rank, in) and B (slots, 1, out, rank). Packed,
an adapter's A of all its projections is one matrix, and B lies transposed, so that both products
read memory in order.
"""

from __future__ import annotations

import ctypes
from itertools import accumulate

import torch

_LANES = 16
_RANKS = 4


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
        ("padded", ctypes.c_int64),
        ("max_ranks", ctypes.c_int64),
        ("projections", ctypes.c_int64),
        ("width", ctypes.POINTER(ctypes.c_int64)),
        ("adapter", ctypes.POINTER(ctypes.POINTER(_Adapter))),
    )


class PackedAdapter:
    """An adapter in one layer: `a` (sum of ranks, in); `b`, a projection each, (rank, out)."""

    def __init__(self, a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
        """Pack A (rank, in) and B (out, rank) of each projection."""
        self.ranks = [len(part) for part in a]
        rows, features = sum(self.ranks), a[0].shape[1]
        self._a = a[0].new_zeros(_round_up(rows, _RANKS), _round_up(features, _LANES))
        self._a[:rows, :features] = torch.cat(a)
        self._b = torch.cat([part.T.reshape(-1) for part in b])
        self.a = self._a[:rows, :features]
        sizes = [part.numel() for part in b]
        self.b = [
            flat.view(rank, len(part))
            for flat, rank, part in zip(self._b.split_with_sizes(sizes), self.ranks, b, strict=True)
        ]
        self._rank = (ctypes.c_int64 * len(self.ranks))(*self.ranks)
        self.struct = _Adapter(
            self._a.data_ptr(),
            self._b.data_ptr(),
            self._a.numel() + self._b.numel(),
            len(self._a),
            self._rank,
        )


class PackedLayer:
    """The packed adapters of one layer, kept in step with vLLM's stacked tensors."""

    def __init__(
        self,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        widths: tuple[int, ...],
    ) -> None:
        """Pack nothing yet.

        Raises:
            ValueError: tensors that don't belong together.
        """
        _check_shapes(lora_a_stacked, lora_b_stacked, widths)
        self.stacked = (lora_a_stacked, lora_b_stacked)
        self.widths = widths
        self.offsets = list(accumulate(widths, initial=0))[:-1]
        self.adapters: dict[int, PackedAdapter] = {}
        slots, _, max_rank, self.features = lora_a_stacked[0].shape
        padded, max_ranks = (
            _round_up(self.features, _LANES),
            _round_up(max_rank * len(widths), _RANKS),
        )
        self.floats_per_row = padded + max_ranks
        self.dtype = lora_a_stacked[0].dtype
        self.is_bfloat16 = self.dtype == torch.bfloat16
        self._tensors = lora_a_stacked + lora_b_stacked
        self._num_writes = -1
        self._writes_of_slots: list[int] = []
        self._width = (ctypes.c_int64 * len(widths))(*widths)
        self._table = (ctypes.POINTER(_Adapter) * slots)()
        self._struct = _Layer(
            self.features, padded, max_ranks, len(widths), self._width, self._table
        )
        self.address = ctypes.addressof(self._struct)

    def refresh(self, writes_of_slots: list[int]) -> None:
        """Drop what was written to since the last call; `writes_of_slots` counts for each slot.

        torch counts the writes to a tensor. Where it saw some that no slot accounts for, all
        slots are dropped.
        """
        num_writes = 0
        for tensor in self._tensors:
            num_writes += tensor._version
        if num_writes == self._num_writes:
            return
        before, now = self._writes_of_slots, writes_of_slots
        stale = {slot for slot in self.adapters if before[slot] != now[slot]}
        for slot in stale or set(self.adapters):
            del self.adapters[slot]
            self._table[slot] = ctypes.POINTER(_Adapter)()
        self._num_writes, self._writes_of_slots = num_writes, list(writes_of_slots)

    def adapter(self, slot: int) -> PackedAdapter:
        """The adapter in a slot, packed if it isn't yet.

        Raises:
            ValueError: its weights aren't finite.
        """
        if slot not in self.adapters:
            self.adapters[slot] = self._pack(slot)
            self._table[slot] = ctypes.pointer(self.adapters[slot].struct)
        return self.adapters[slot]

    def _pack(self, slot: int) -> PackedAdapter:
        a, b = [], []
        for a_stacked, b_stacked in zip(*self.stacked, strict=True):
            full_a, full_b = a_stacked[slot, 0], b_stacked[slot, 0]
            if not (full_a.isfinite().all() and full_b.isfinite().all()):
                raise ValueError(f"LoRA slot {slot} holds weights that aren't finite")
            used = full_a.any(dim=1) & full_b.any(dim=0)
            rank = int(used.nonzero().max()) + 1 if used.any() else 0
            a.append(full_a[:rank])
            b.append(full_b[:, :rank])
        return PackedAdapter(a, b)


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
