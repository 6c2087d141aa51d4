"""Prepares a step's batch for the kernels: sorts its rows by slot and cuts them into tiles.

This is done on the host with NumPy, once for all layers of a step. One copy brings it to the GPU,
and nothing here waits for the GPU. The kernels' grids depend only on shapes (`max_tiles`), so a
captured CUDA graph is right for every batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TILE_ROWS = (16, 32, 64, 128)
"""Tile heights that a table of tile sizes may choose from."""

TILE_FIELDS = 4
"""Fields of a tile: slot, first position, number of rows, and an unused one. 16 bytes in all."""

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Groups:
    """A step's rows, grouped by slot in rising order. The group of base rows, -1, comes first."""

    slot_of_row: Ints
    """The slot of each row of the batch, -1 for none."""
    slots: Ints
    counts: Ints
    starts: Ints
    """Index in `rows` where each slot's rows begin."""
    rows: Ints

    @property
    def has_adapters(self) -> bool:
        """Return True if a row has an adapter."""
        return bool(self.slots.size) and int(self.slots[-1]) >= 0


def group_rows(slot_of_row: Ints) -> Groups:
    """Sort a step's rows by slot. Rows of one slot keep their order."""
    if not slot_of_row.size:
        empty = np.zeros(0, np.int32)
        return Groups(empty, empty, empty, empty, empty)
    # NumPy sorts 16-bit numbers by radix, in linear time.
    rows = np.argsort(slot_of_row.astype(np.int16), kind="stable").astype(np.int32)
    counts_of_all = np.bincount(slot_of_row + 1)
    groups = np.flatnonzero(counts_of_all)
    counts = counts_of_all[groups].astype(np.int32)
    starts = (np.cumsum(counts) - counts).astype(np.int32)
    return Groups(slot_of_row, (groups - 1).astype(np.int32), counts, starts, rows)


def max_tiles(num_rows: int, num_slots: int, tile_rows: int) -> int:
    """Return the most tiles that `num_rows` rows of at most `num_slots` adapters can need."""
    adapters = min(num_rows, num_slots)
    return adapters + (num_rows - adapters) // tile_rows


def fill_tiles(tiles: Ints, groups: Groups, tile_rows: int) -> None:
    """Write the tiles of all rows that have an adapter to `tiles` (capacity, TILE_FIELDS)."""
    tiles[:, 0] = -1
    with_adapter = groups.slots >= 0
    counts, starts = groups.counts[with_adapter], groups.starts[with_adapter]
    tiles_of = -(-counts // tile_rows)
    total = int(tiles_of.sum())
    within = np.arange(total) - np.repeat(np.cumsum(tiles_of) - tiles_of, tiles_of)
    before = within * tile_rows
    tiles[:total, 0] = np.repeat(groups.slots[with_adapter], tiles_of)
    tiles[:total, 1] = np.repeat(starts, tiles_of) + before
    tiles[:total, 2] = np.minimum(np.repeat(counts, tiles_of) - before, tile_rows)
