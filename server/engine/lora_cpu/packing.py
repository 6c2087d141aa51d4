"""One layer's adapters at their own rank, packed when they are first used after a load.

vLLM keeps a layer's adapters in stacked tensors, padded with zeros to `max_lora_rank`: for each of
the projections that the layer fuses, A (slots, 1, rank, in) and B (slots, 1, out, rank). Packed,
an adapter's A of all its projections is one matrix, and both products read memory in order.
"""

from __future__ import annotations

import ctypes
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

    def __init__(self, a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
        """Pack A (rank, in) and B (out, rank) of each projection."""
        self.parts = list(zip(a, b, strict=True))
        ranks = [_round_up(len(part), 2) for part in a]
        self._a = _pack_a([_padded(part, rank, 0) for part, rank in zip(a, ranks, strict=True)])
        self._b = torch.cat(
            [_pack_b(_padded(part, 0, rank)) for part, rank in zip(b, ranks, strict=True)]
        )
        self._rank = (ctypes.c_int64 * len(ranks))(*ranks)
        self.struct = _Adapter(
            self._a.data_ptr(),
            self._b.data_ptr(),
            self._a.numel() + self._b.numel(),
            _round_up(sum(ranks), _LANES),
            self._rank,
        )


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
        self.max_ranks = _round_up(_round_up(max_rank, 2) * len(widths), _LANES)
        self.dtype = lora_a_stacked[0].dtype
        self.is_bfloat16 = self.dtype == torch.bfloat16
        self._tensors = lora_a_stacked + lora_b_stacked
        self._num_writes = -1
        self._writes_of_slots: list[int] = []
        self._width = (ctypes.c_int64 * len(widths))(*widths)
        self._table = (ctypes.POINTER(_Adapter) * slots)()
        self._struct = _Layer(self.features, self.max_ranks, len(widths), self._width, self._table)
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

        NaN among its weights is packed like anything else: it spoils its own rows, where raising
        would end the engine for everyone.
        """
        if slot not in self.adapters:
            self.adapters[slot] = self._pack(slot)
            self._table[slot] = ctypes.pointer(self.adapters[slot].struct)
        return self.adapters[slot]

    def _pack(self, slot: int) -> PackedAdapter:
        a, b = [], []
        for a_stacked, b_stacked in zip(*self.stacked, strict=True):
            full_a, full_b = a_stacked[slot, 0], b_stacked[slot, 0]
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
