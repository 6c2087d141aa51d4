"""Tile sizes by shape and number of rows: from a table that was measured, else by rule.

A table is a JSON file that `loraplex tune` writes for one kind of card; `tiles.json` beside this
module is read where there is none. Each entry names a shape, the most rows that it is for, and the
sizes. A shape that no entry has gets its sizes by rule.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from server.engine.worker.lora_gpu.steps import TILE_ROWS
from server.engine.worker.lora_gpu.weights import Shape

ROW_LIMITS = (16, 64, 256, 1024, 8192)
"""Entries are for batches of up to so many rows; beyond the last, its sizes are used."""

_SMALLEST = 16
"""What a tensor core multiplies at least, in each direction."""

_MAX_PARTS = 64


@dataclass(frozen=True)
class Tiles:
    """Sizes of the two kernels' blocks; all are powers of two."""

    tile_rows: int
    """Rows of one adapter that a program works on."""
    columns: int
    """Shrink: ranks, of all slices together."""
    features: int
    """Shrink: features at a time."""
    parts: int
    """Shrink: parts that the features are split into; expand adds them up."""
    shrink_warps: int
    shrink_stages: int
    outputs: int
    """Expand: outputs."""
    ranks: int
    """Expand: ranks at a time."""
    expand_warps: int
    expand_stages: int
    early: bool = False
    """Programmatic dependent launch (Hopper): a kernel starts while the one before it ends."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a size that the kernels can't have.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "early":
                continue
            if type(value) is not int or value < 1:
                raise ValueError(f"{field.name} must be a positive integer, not {value!r}")
            if field.name not in ("shrink_stages", "expand_stages") and value & (value - 1):
                raise ValueError(f"{field.name} must be a power of two, not {value}")
        if self.tile_rows not in TILE_ROWS:
            raise ValueError(f"tile_rows must be one of {TILE_ROWS}, not {self.tile_rows}")
        if min(self.columns, self.features, self.outputs, self.ranks) < _SMALLEST:
            raise ValueError(f"columns, features, outputs and ranks must be at least {_SMALLEST}")
        if self.parts > _MAX_PARTS:
            raise ValueError(f"parts must be at most {_MAX_PARTS}, not {self.parts}")


@dataclass(frozen=True)
class Entry:
    """The sizes for one shape and batches of up to `max_rows` rows."""

    shape: Shape
    max_rows: int
    tiles: Tiles


class TileTable:
    """Chooses tile sizes; the same question has the same answer for good."""

    def __init__(self, entries: Iterable[Entry] = (), device: str = "", source: str = "") -> None:
        """Take entries; `device` is the card that they were measured on."""
        self.same_for_all_batches = False
        """Whether a row's result must not depend on the rest of its batch (to the last bit)."""
        self.device = device
        self.source = source
        self._entries = {(entry.shape, entry.max_rows): entry.tiles for entry in entries}

    @classmethod
    def of_one(cls, shape: Shape, tiles: Tiles) -> TileTable:
        """A table that gives a shape the same sizes for every batch."""
        return cls(Entry(shape, limit, tiles) for limit in ROW_LIMITS)

    def choose(self, shape: Shape, num_rows: int) -> Tiles:
        """The sizes for a batch of so many rows."""
        limit = ROW_LIMITS[2] if self.same_for_all_batches else row_limit(num_rows)
        known = self._entries.get((shape, limit))
        return known if known is not None else by_rule(shape, limit)

    def variants(self, shape: Shape) -> dict[int, Tiles]:
        """Every choice that a shape can get, by the limit of rows that it is for."""
        return {limit: self.choose(shape, limit) for limit in ROW_LIMITS}

    @cached_property
    def entries(self) -> list[Entry]:
        """What the table holds."""
        return [Entry(shape, limit, tiles) for (shape, limit), tiles in self._entries.items()]


def row_limit(num_rows: int) -> int:
    """The limit of rows whose entry a batch uses."""
    return next((limit for limit in ROW_LIMITS if num_rows <= limit), ROW_LIMITS[-1])


def by_rule(shape: Shape, num_rows: int) -> Tiles:
    """Sizes that should do on an H100 or H200; they have yet to be measured there.

    Few rows: the weights must stream in, so many programs have a part of them each. Many rows: x
    and y must, so tiles are tall and x is read once for all slices. Tall tiles keep 64 outputs:
    with 128 vLLM's expand kernel gave NaN on Hopper (vLLM issue 48590).
    """
    columns = _clamp(power_of_two(shape.max_columns), _SMALLEST, 64)
    ranks = _clamp(power_of_two(shape.max_rank), _SMALLEST, 64)
    many = num_rows > ROW_LIMITS[2]
    features = _clamp(power_of_two(shape.features), _SMALLEST, 64 if many else 128)
    if many:
        parts = 1 if num_rows > ROW_LIMITS[3] else 4
        return Tiles(64, columns, features, parts, 4, 4, 64, ranks, 4, 1)
    few = num_rows <= ROW_LIMITS[0]
    parts = _clamp(power_of_two(shape.features // 512), 1, 16)
    return Tiles(
        16,
        _SMALLEST if few else columns,
        features,
        parts,
        4,
        3,
        64 if few else 128,
        _SMALLEST,
        4,
        1,
    )


def load_table(tuned: Path | None, device: str) -> TileTable:
    """The table for a card: the tuned one if it is for it, else the packaged one.

    Raises:
        ValueError: a file that is no such table.
    """
    if tuned is not None and tuned.is_file():
        table = read_table(tuned)
        if table.device == device:
            return table
    packaged = read_table(Path(__file__).with_name("tiles.json"))
    return packaged if packaged.device in device else TileTable()


def read_table(path: Path) -> TileTable:
    """Read a table.

    Raises:
        ValueError: a file that is no such table; the message names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = [_entry(each) for each in content["entries"]]
        return TileTable(entries, str(content["device"]), str(path))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no table of tile sizes: {error}") from error


def write_table(path: Path, table: TileTable) -> None:
    """Write a table, whole or not at all."""
    entries = [
        {**asdict(entry.shape), "max_rows": entry.max_rows, "tiles": asdict(entry.tiles)}
        for entry in table.entries
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps({"device": table.device, "entries": entries}, indent=1) + "\n")
    part.replace(path)


def power_of_two(value: int) -> int:
    """The smallest power of two that isn't under a value."""
    return 1 << max(0, value - 1).bit_length()


def _entry(each: dict[str, Any]) -> Entry:
    outputs: Sequence[int] = each["outputs"]
    shape = Shape(int(each["features"]), tuple(map(int, outputs)), int(each["max_rank"]))
    return Entry(shape, int(each["max_rows"]), Tiles(**each["tiles"]))


def _clamp(value: int, least: int, most: int) -> int:
    return max(least, min(value, most))
