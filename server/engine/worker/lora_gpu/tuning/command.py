"""The command `loraplex tune`: measures tile sizes on this machine's GPU and writes the table.

It is in this package because it needs the kernels but no server.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from server.engine.worker.lora_gpu.tile_table import Tiles, TileTable
    from server.engine.worker.lora_gpu.weights import Shape


class CannotTune(Exception):
    """There is no card to measure on, or no base to measure for."""


MeasureShape = Callable[["Shape", int], Callable[["Tiles"], float]]
"""Returns, for a shape and a number of rows, the function that measures tile sizes."""

Check = Callable[["Shape", "Tiles"], str | None]
"""Returns what is wrong with a shape's results, or None if they are right."""


def tune(
    base: Annotated[Path, typer.Option(help="The base's directory, or its config.json.")],
    output: Annotated[
        Path | None,
        typer.Option(help="Where to write the table. By default where the server looks for it."),
    ] = None,
    rank: Annotated[int, typer.Option(help="The server's --max-lora-rank.", min=1)] = 16,
    slots: Annotated[int, typer.Option(help="The server's --max-loras.", min=1)] = 16,
    tensor_parallel: Annotated[int, typer.Option(help="GPUs that share the base.", min=1)] = 1,
    seconds: Annotated[float, typer.Option(help="Stop after this many seconds.", min=1)] = 400,
    early: Annotated[
        bool, typer.Option("--early", help="Also try programmatic dependent launch.")
    ] = False,
) -> None:
    """Measure the best tile sizes of the LoRA kernels on this machine's NVIDIA GPU.

    The command writes a table, which the server reads at its next start. Give the rank, the slots
    and the number of GPUs that the server is started with.
    """
    import torch

    from server.engine.worker.lora_gpu.tile_table import write_table
    from server.engine.worker.lora_gpu.tuning.search import adapters_of, layer_shapes
    from server.settings import load_settings

    path = output or load_settings().gpu_lora_tiles_file
    try:
        file = base / "config.json" if base.is_dir() else base
        shapes = layer_shapes(json.loads(file.read_text()), rank, tensor_parallel)
    except (OSError, ValueError) as error:
        raise CannotTune(f"--base {base}: {error}") from None
    if not torch.cuda.is_available():
        raise CannotTune("tune measures on an NVIDIA GPU, and this machine has none")

    from server.engine.worker.lora_gpu.self_check import failure
    from server.engine.worker.lora_gpu.tile_table import TileTable
    from server.engine.worker.lora_gpu.tuning.timer import GraphTimer

    dtype = torch.bfloat16

    def measure(shape: Shape, num_rows: int) -> Callable[[Tiles], float]:
        batch = list(adapters_of(num_rows, slots))
        return GraphTimer(shape, batch, slots, dtype).microseconds

    def check(shape: Shape, tiles: Tiles) -> str | None:
        return failure(TileTable.of_one(shape, tiles), [shape], dtype, "cuda")

    table = fill_table(
        shapes,
        measure,
        check,
        device=torch.cuda.get_device_name(),
        stop=time.monotonic() + seconds,
        early=early,
        say=typer.echo,
        save=lambda table: write_table(path, table),
    )
    typer.echo(f"{len(table.entries)} entries in {path}")


def fill_table(
    shapes: Mapping[str, Shape],
    measure: MeasureShape,
    check: Check,
    *,
    device: str,
    stop: float,
    early: bool,
    say: Callable[[str], None],
    save: Callable[[TileTable], None],
    now: Callable[[], float] = time.monotonic,
) -> TileTable:
    """Measure each shape for each limit of rows until the time `stop`. Saves each result at once.

    Sizes that are faster but give wrong results are dropped.
    """
    from server.engine.worker.lora_gpu.tile_table import ROW_LIMITS, Entry, TileTable, by_rule
    from server.engine.worker.lora_gpu.tuning.search import best_tiles

    entries: list[Entry] = []
    table = TileTable(entries, device)
    # Decoding with many streams, and long prompts, come first, because time may run out.
    for limit in sorted(ROW_LIMITS, key=lambda rows: (rows not in (64, 8192), rows)):
        for name, shape in shapes.items():
            if now() >= stop:
                say("stopped: the time is up; shapes not in the table get their sizes by rule")
                return table
            timer = measure(shape, limit)
            start = by_rule(shape, limit)
            before = timer(start)
            tiles, after = best_tiles(
                start,
                lambda tiles, timer=timer: (  # type: ignore[misc]
                    timer(tiles) if early or not tiles.early else float("inf")
                ),
                lambda: now() < stop,
            )
            wrong = check(shape, tiles)
            if wrong is not None:
                say(f"{name}, up to {limit} rows: {tiles} is wrong ({wrong}), not kept")
                continue
            say(f"{name}, up to {limit} rows: {before:.1f} -> {after:.1f} us")
            entries.append(Entry(shape, limit, tiles))
            table = TileTable(entries, device)
            save(table)
    return table


if __name__ == "__main__":
    typer.run(tune)
