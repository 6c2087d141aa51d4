"""Chooses tile sizes by shape and number of rows, from a measured table or by rule.

A table is a JSON file that `loraplex tune` writes for one kind of card. If there is none,
`tiles.json` beside this module is read. Each entry has a shape, the largest number of rows that it
is for, and the sizes. If a shape has no entry, its sizes follow a rule.
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
"""Each entry is for batches of up to one of these numbers of rows. Larger batches use the last."""

_SMALLEST = 16
"""The smallest size that a tensor core multiplies, in each direction."""

_MAX_PARTS = 64


@dataclass(frozen=True)
class Tiles:
    """Sizes of the two kernels' blocks. All but the numbers of stages are powers of two."""

    tile_rows: int
    """Rows of one adapter that a program works on."""
    columns: int
    """Ranks, of all slices together, that a program of shrink computes."""
    features: int
    """Features that shrink reads at a time."""
    parts: int
    """Parts that shrink splits the features into. Expand adds them up."""
    shrink_warps: int
    shrink_stages: int
    outputs: int
    """Outputs that a program of expand computes."""
    ranks: int
    """Ranks that expand reads at a time."""
    expand_warps: int
    expand_stages: int
    early: bool = False
    """Use programmatic dependent launch (Hopper): a kernel starts while the one before it ends."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: the kernels can't have such a size.
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
    """Chooses tile sizes. It always gives the same sizes for the same shape and number of rows."""

    def __init__(self, entries: Iterable[Entry] = (), device: str = "", source: str = "") -> None:
        """Take entries. `device` is the card that they were measured on."""
        self.same_for_all_batches = False
        """Whether a row's result must be the same, to the last bit, in every batch."""
        self.device = device
        self.source = source
        self._entries = {(entry.shape, entry.max_rows): entry.tiles for entry in entries}

    @classmethod
    def of_one(cls, shape: Shape, tiles: Tiles) -> TileTable:
        """Return a table that gives a shape the same sizes for every batch."""
        return cls(Entry(shape, limit, tiles) for limit in ROW_LIMITS)

    def choose(self, shape: Shape, num_rows: int) -> Tiles:
        """Return the sizes for a batch of this many rows."""
        limit = ROW_LIMITS[2] if self.same_for_all_batches else row_limit(num_rows)
        known = self._entries.get((shape, limit))
        return known if known is not None else by_rule(shape, limit)

    def variants(self, shape: Shape) -> dict[int, Tiles]:
        """Return the sizes that a shape can get, by their limit of rows."""
        return {limit: self.choose(shape, limit) for limit in ROW_LIMITS}

    @cached_property
    def entries(self) -> list[Entry]:
        """Return the table's entries."""
        return [Entry(shape, limit, tiles) for (shape, limit), tiles in self._entries.items()]


def row_limit(num_rows: int) -> int:
    """Return the limit of rows whose entry a batch of this many rows uses."""
    return next((limit for limit in ROW_LIMITS if num_rows <= limit), ROW_LIMITS[-1])


def by_rule(shape: Shape, num_rows: int) -> Tiles:
    """Return sizes that should suit an H100 or H200. They have not been measured there yet.

    With few rows, reading the weights takes the time, so many programs read a part of them each.
    With many rows, reading x and y takes the time, so tiles are tall and x is read once for all
    slices. Tall tiles keep 64 outputs: with 128, vLLM's expand kernel gave NaN on Hopper (vLLM
    issue 48590).
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
    """Return the table for a card: the tuned one if it is for this card, else the packaged one.

    Raises:
        ValueError: a file isn't such a table.
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
        ValueError: the file isn't such a table. The message names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = [_entry(each) for each in content["entries"]]
        return TileTable(entries, str(content["device"]), str(path))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a table of tile sizes: {error}") from error


def write_table(path: Path, table: TileTable) -> None:
    """Write a table. If that fails, a table that was there before is kept."""
    entries = [
        {**asdict(entry.shape), "max_rows": entry.max_rows, "tiles": asdict(entry.tiles)}
        for entry in table.entries
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps({"device": table.device, "entries": entries}, indent=1) + "\n")
    part.replace(path)


def power_of_two(value: int) -> int:
    """Return the smallest power of two that is at least `value`."""
    return 1 << max(0, value - 1).bit_length()


def _entry(each: dict[str, Any]) -> Entry:
    outputs: Sequence[int] = each["outputs"]
    shape = Shape(int(each["features"]), tuple(map(int, outputs)), int(each["max_rank"]))
    return Entry(shape, int(each["max_rows"]), Tiles(**each["tiles"]))


def _clamp(value: int, least: int, most: int) -> int:
    return max(least, min(value, most))
