"""Tile sizes by shape and rows, from a table or by rule."""

import dataclasses
import json
from pathlib import Path

import pytest

from server.engine.worker.lora_gpu.tile_table import (
    ROW_LIMITS,
    Entry,
    Tiles,
    TileTable,
    by_rule,
    load_table,
    read_table,
    row_limit,
    write_table,
)
from server.engine.worker.lora_gpu.weights import Shape

QKV = Shape(4096, (4096, 1024, 1024), 16)
MEASURED = Tiles(32, 16, 64, 2, 8, 2, 64, 16, 8, 3)
CARD = "NVIDIA H200"


@pytest.mark.parametrize(
    ("rows", "limit"), [(1, 16), (16, 16), (17, 64), (64, 64), (300, 1024), (99999, 8192)]
)
def test_limits_of_rows(rows: int, limit: int) -> None:
    assert row_limit(rows) == limit


def test_a_measured_shape_has_its_sizes_and_the_others_the_rule() -> None:
    table = TileTable([Entry(QKV, 64, MEASURED)])
    assert table.choose(QKV, 40) == MEASURED
    assert table.choose(QKV, 4) == by_rule(QKV, 16)
    assert table.choose(Shape(4096, (4096,), 16), 40) == by_rule(Shape(4096, (4096,), 16), 64)
    assert table.variants(QKV)[64] == MEASURED
    assert list(table.variants(QKV)) == list(ROW_LIMITS)


@pytest.mark.parametrize("features", [1, 64, 576, 4096, 14336])
@pytest.mark.parametrize("rank", [1, 8, 16, 64, 512])
@pytest.mark.parametrize("slices", [1, 2, 3])
def test_the_rule_fits_every_shape(features: int, rank: int, slices: int) -> None:
    for limit in ROW_LIMITS:
        by_rule(Shape(features, (features,) * slices, rank), limit)  # raises where it doesn't


def test_tall_tiles_avoid_the_width_that_gave_nan() -> None:
    for limit in ROW_LIMITS:
        tiles = by_rule(QKV, limit)
        assert tiles.tile_rows < 64 or tiles.outputs < 128


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tiles.json"
    write_table(path, TileTable([Entry(QKV, 64, MEASURED)], CARD))
    table = read_table(path)
    assert (table.device, table.source) == (CARD, str(path))
    assert table.entries == [Entry(QKV, 64, MEASURED)]
    assert load_table(path, CARD).choose(QKV, 64) == MEASURED


def test_a_table_of_another_card_is_not_used(tmp_path: Path) -> None:
    write_table(path := tmp_path / "tiles.json", TileTable([Entry(QKV, 64, MEASURED)], CARD))
    assert load_table(path, "NVIDIA H100 80GB HBM3").choose(QKV, 64) == by_rule(QKV, 64)
    assert load_table(tmp_path / "none.json", CARD).choose(QKV, 64) == by_rule(QKV, 64)
    assert load_table(None, CARD).choose(QKV, 64) == by_rule(QKV, 64)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"device": "x", "entries": [{}]}', '{"device": "x", "entries": 3}'],
)
def test_a_file_that_is_no_table_is_named(tmp_path: Path, content: str) -> None:
    (path := tmp_path / "tiles.json").write_text(content)
    with pytest.raises(ValueError, match=r"tiles\.json is not a table of tile sizes"):
        read_table(path)


@pytest.mark.parametrize(
    ("size", "value", "why"),
    [
        ("tile_rows", 8, "one of"),
        ("columns", 24, "power of two"),
        ("features", 8, "at least 16"),
        ("parts", 0, "positive"),
        ("parts", 128, "at most 64"),
        ("outputs", "64", "positive integer"),
    ],
)
def test_sizes_that_kernels_can_not_have(
    tmp_path: Path, size: str, value: object, why: str
) -> None:
    write_table(path := tmp_path / "tiles.json", TileTable([Entry(QKV, 64, MEASURED)], CARD))
    content = json.loads(path.read_text())
    content["entries"][0]["tiles"][size] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=why):
        read_table(path)


def test_the_packaged_table_can_be_read() -> None:
    assert load_table(None, "NVIDIA H100 80GB HBM3").device in ("", "NVIDIA H100")
    assert dataclasses.is_dataclass(MEASURED)
