"""Finds which rows of a batch belong to which slot, once in each step for all layers."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch

BLOCK_ROWS = 8
"""How many rows of one slot the kernel computes together (`rows.c`)."""

Group = tuple[int, slice | torch.Tensor]
"""A slot and the rows that use it, as a slice if the rows are contiguous."""


class Block(ctypes.Structure):
    """`block_t` of `rows.c`."""

    _fields_ = (
        ("slot", ctypes.c_int32),
        ("count", ctypes.c_int32),
        ("row", ctypes.c_int32 * BLOCK_ROWS),
    )


@dataclass(frozen=True)
class Step:
    """The rows of a batch. Rows without an adapter (slot -1) are in no group and in no block."""

    num_rows: int
    groups: list[Group]
    """All rows with an adapter, one group for each slot."""
    blocks: ctypes.Array[Block]
    """The same rows as the kernel reads them."""


def make_step(slots: list[int], max_loras: int) -> Step:
    """Group rows by their slots. -1 means no adapter.

    Raises:
        ValueError: a slot does not exist.
    """
    wrong = [slot for slot in slots if not -1 <= slot < max_loras]
    if wrong:
        raise ValueError(f"LoRA slots {sorted(set(wrong))} of {max_loras}")
    rows_of = _rows_of(slots)
    return Step(len(slots), _groups(rows_of), _blocks(rows_of))


def group_rows(slots: list[int]) -> list[Group]:
    """Group all rows of a batch by slot."""
    return _groups(_rows_of(slots))


def _rows_of(slots: list[int]) -> dict[int, list[int]]:
    rows_of: dict[int, list[int]] = {}
    for row, slot in enumerate(slots):
        if slot >= 0:
            rows_of.setdefault(slot, []).append(row)
    return rows_of


def _groups(rows_of: dict[int, list[int]]) -> list[Group]:
    groups: list[Group] = []
    for slot, rows in sorted(rows_of.items()):
        neighbours = rows[-1] - rows[0] + 1 == len(rows)
        groups.append((slot, slice(rows[0], rows[-1] + 1) if neighbours else torch.tensor(rows)))
    return groups


def _blocks(rows_of: dict[int, list[int]]) -> ctypes.Array[Block]:
    blocks = []
    for slot, rows in sorted(rows_of.items()):
        for start in range(0, len(rows), BLOCK_ROWS):
            part = rows[start : start + BLOCK_ROWS]
            padded = part + part[-1:] * (BLOCK_ROWS - len(part))
            blocks.append(Block(slot, len(part), (ctypes.c_int32 * BLOCK_ROWS)(*padded)))
    return (Block * len(blocks))(*blocks)
