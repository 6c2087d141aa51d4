"""Which rows of a batch belong to which slot, worked out once a step for all layers."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from itertools import groupby

import torch

BLOCK_ROWS = 4
"""Rows of one slot that the kernel takes at once (`rows.c`)."""

Group = tuple[int, slice | torch.Tensor]
"""A slot, and rows that use it: a slice where they are neighbours."""


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
    """All rows with an adapter: one group a slot."""
    runs: list[Group]
    """Of those, neighbours of one slot in such number (a prompt) that products beat the kernel."""
    blocks: ctypes.Array[Block]
    """The others, for the kernel."""


def make_step(slots: list[int], max_loras: int, min_product_rows: int) -> Step:
    """Share out the rows whose slots are given, -1 for none.

    Neighbours of one slot, at least `min_product_rows` of them, are a run.

    Raises:
        ValueError: a slot that doesn't exist.
    """
    wrong = [slot for slot in slots if not -1 <= slot < max_loras]
    if wrong:
        raise ValueError(f"LoRA slots {sorted(set(wrong))} of {max_loras}")
    runs: list[Group] = []
    short: dict[int, list[int]] = {}
    row = 0
    for slot, run in groupby(slots):
        count = len(list(run))
        if slot >= 0 and count >= min_product_rows:
            runs.append((slot, slice(row, row + count)))
        elif slot >= 0:
            short.setdefault(slot, []).extend(range(row, row + count))
        row += count
    return Step(len(slots), group_rows(slots), runs, _blocks(short))


def group_rows(slots: list[int]) -> list[Group]:
    """Group all rows of a batch by slot."""
    rows_of: dict[int, list[int]] = {}
    for row, slot in enumerate(slots):
        if slot >= 0:
            rows_of.setdefault(slot, []).append(row)
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
