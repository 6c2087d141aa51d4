"""`loraplex tune`: the search with a made-up card, and what it says where there is none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from server.cli.main import app
from server.engine.worker.lora_gpu.tile_table import ROW_LIMITS, Tiles, TileTable, by_rule
from server.engine.worker.lora_gpu.tuning.command import fill_table
from server.engine.worker.lora_gpu.tuning.search import (
    STEPS,
    adapters_of,
    best_tiles,
    layer_shapes,
    neighbours,
)
from server.engine.worker.lora_gpu.weights import Shape

LLAMA = {
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
}
SHAPE = Shape(4096, (4096,), 16)
WANTED = Tiles(32, 64, 256, 16, 8, 5, 256, 32, 2, 3)


def distance(tiles: Tiles) -> float:
    """Microseconds of a card that likes `WANTED`."""
    off = [
        abs(STEPS[size].index(getattr(tiles, size)) - STEPS[size].index(getattr(WANTED, size)))
        for size in STEPS
        if size != "early"
    ]
    return 10.0 + sum(off)


def test_the_best_sizes_are_found() -> None:
    assert best_tiles(by_rule(SHAPE, 64), distance) == (WANTED, 10.0)


def test_sizes_that_can_not_run_are_passed_over() -> None:
    def measure(tiles: Tiles) -> float:
        return math.inf if tiles.outputs == 256 else distance(tiles)

    tiles, microseconds = best_tiles(by_rule(SHAPE, 64), measure)
    assert tiles.outputs == 128
    assert microseconds == 11.0


def test_a_start_that_can_not_run_is_left() -> None:
    start = by_rule(SHAPE, 64)
    tiles, _ = best_tiles(start, lambda tiles: math.inf if tiles == start else distance(tiles))
    assert tiles == WANTED


def test_noise_changes_nothing() -> None:
    start = by_rule(SHAPE, 64)
    tiles, _ = best_tiles(start, lambda tiles: 100.0 if tiles == start else 99.0)
    assert tiles == start


def test_the_search_stops_in_time() -> None:
    left = iter([True] * 5)
    measured: list[Tiles] = []

    def measure(tiles: Tiles) -> float:
        measured.append(tiles)
        return distance(tiles)

    best_tiles(by_rule(SHAPE, 64), measure, lambda: next(left, False))
    assert len(measured) == 1 + 5


@pytest.mark.parametrize("size", STEPS)
def test_every_neighbour_is_valid(size: str) -> None:
    assert len(list(neighbours(WANTED, size))) == len(STEPS[size]) - 1


def test_shapes_of_a_llama() -> None:
    assert layer_shapes(LLAMA, 16) == {
        "qkv": Shape(4096, (4096, 1024, 1024), 16),
        "o": Shape(4096, (4096,), 16),
        "gate_up": Shape(4096, (14336, 14336), 16),
        "down": Shape(14336, (4096,), 16),
    }
    halves = layer_shapes(LLAMA, 16, tensor_parallel=2)
    assert halves["qkv"].outputs == (2048, 512, 512)
    assert halves["down"] == Shape(7168, (4096,), 16)
    with pytest.raises(ValueError, match="3 ways"):
        layer_shapes(LLAMA, 16, tensor_parallel=3)
    with pytest.raises(ValueError, match="hidden_size"):
        layer_shapes({}, 16)


def test_shapes_of_a_family_with_fused_layers() -> None:
    shapes = layer_shapes({**LLAMA, "architectures": ["Phi3ForCausalLM"]}, 16)
    assert shapes["qkv"] == Shape(4096, (4096 + 2 * 1024,), 16)
    assert shapes["gate_up"] == Shape(4096, (2 * 14336,), 16)


def test_batches_to_measure_with() -> None:
    assert list(adapters_of(6, 4)) == [0, 1, 2, 3, 0, 1]
    prompts = list(adapters_of(1024, 16))
    assert prompts == sorted(prompts)
    assert set(prompts) == {0, 1, 2, 3}


def fill(
    check: Callable[[Shape, Tiles], str | None], stop: float = math.inf
) -> tuple[TileTable, list[str], list[int]]:
    said: list[str] = []
    saved: list[int] = []
    clock = iter(range(10**6))
    table = fill_table(
        {"o": SHAPE},
        lambda _shape, _rows: distance,
        check,
        device="a card",
        stop=stop,
        early=False,
        say=said.append,
        save=lambda table: saved.append(len(table.entries)),
        now=lambda: next(clock),
    )
    return table, said, saved


def test_a_table_is_filled_and_saved_as_it_grows() -> None:
    table, said, saved = fill(lambda _shape, _tiles: None)
    assert table.device == "a card"
    assert all(table.choose(SHAPE, limit) == WANTED for limit in ROW_LIMITS)
    assert saved == list(range(1, 1 + len(ROW_LIMITS)))
    assert said[0].startswith("o, up to 64 rows: ")


def test_fast_but_wrong_sizes_are_not_kept() -> None:
    table, said, saved = fill(lambda _shape, _tiles: "a row is off by nan")
    assert not table.entries
    assert not saved
    assert all("is wrong (a row is off by nan), not kept" in line for line in said)


def test_what_is_done_in_time_is_kept() -> None:
    table, said, _ = fill(lambda _shape, _tiles: None, stop=150)
    assert 0 < len(table.entries) < len(ROW_LIMITS)
    assert said[-1].startswith("stopped: the time is up")


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure")
def test_without_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    result = CliRunner().invoke(app, ["tune", "--base", str(tmp_path)])
    assert result.exit_code == 2
    assert result.output == (
        "loraplex: tune measures on an NVIDIA GPU, and this machine has none\n"
    )


def test_a_base_without_configuration(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["tune", "--base", str(tmp_path)])
    assert result.exit_code == 2
    assert "config.json" in result.output
