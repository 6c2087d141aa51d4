"""Grouping rows and cutting them into tiles: every row with an adapter is in exactly one tile."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.worker.lora_gpu.steps import (
    TILE_FIELDS,
    TILE_ROWS,
    fill_tiles,
    group_rows,
    max_tiles,
)

SLOTS = 6
BATCHES = st.lists(st.integers(-1, SLOTS - 1), max_size=200).map(lambda b: np.array(b, np.int32))


def tiles_of(batch: np.ndarray, tile_rows: int) -> np.ndarray:
    tiles = np.full((max_tiles(len(batch), SLOTS, tile_rows) + 2, TILE_FIELDS), 99, np.int32)
    fill_tiles(tiles, group_rows(batch), tile_rows)
    return tiles


@given(BATCHES, st.sampled_from(TILE_ROWS))
def test_tiles_cover_each_row_with_an_adapter_once(batch: np.ndarray, tile_rows: int) -> None:
    rows = group_rows(batch).rows
    seen = []
    for slot, first, count, _ in tiles_of(batch, tile_rows):
        if slot >= 0:
            assert 0 < count <= tile_rows
            assert (batch[rows[first : first + count]] == slot).all()
            seen += rows[first : first + count].tolist()
    assert sorted(seen) == np.flatnonzero(batch >= 0).tolist()


@given(BATCHES, st.sampled_from(TILE_ROWS), st.integers(0, 50))
def test_the_grid_of_a_padded_batch_has_every_tile(
    batch: np.ndarray, tile_rows: int, padding: int
) -> None:
    active = len(set(batch.tolist()) - {-1})
    bound = max_tiles(len(batch) + padding, active, tile_rows)
    assert (tiles_of(batch, tile_rows)[bound:, 0] == -1).all()


def test_rows_of_a_slot_keep_their_order() -> None:
    groups = group_rows(np.array([2, -1, 0, 2, -1, 2], np.int32))
    assert groups.slots.tolist() == [-1, 0, 2]
    assert groups.counts.tolist() == [2, 1, 3]
    assert groups.starts.tolist() == [0, 2, 3]
    assert groups.rows.tolist() == [1, 4, 2, 0, 3, 5]


@pytest.mark.parametrize(("batch", "has"), [([], False), ([-1, -1], False), ([-1, 0], True)])
def test_whether_a_batch_has_adapters(batch: list[int], has: bool) -> None:
    assert group_rows(np.array(batch, np.int32)).has_adapters is has


def test_decoding_needs_few_tiles() -> None:
    assert max_tiles(64, 16, 16) == 16 + 3
    assert max_tiles(1, 16, 16) == 1
    assert max_tiles(8192, 16, 64) == 16 + 127
