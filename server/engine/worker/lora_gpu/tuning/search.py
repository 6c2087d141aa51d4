"""Finds tile sizes by measuring: it starts with those by rule and changes one size at a time.

It doesn't depend on a GPU: the function that measures is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

from adapters_registry.families import LLAMA, LayerSizes, family_of
from server.engine.worker.lora_gpu.steps import TILE_ROWS
from server.engine.worker.lora_gpu.tile_table import Tiles
from server.engine.worker.lora_gpu.weights import Shape

Measure = Callable[[Tiles], float]
"""Returns the microseconds that a batch takes with these sizes."""

STEPS: Mapping[str, tuple[int, ...]] = {
    "tile_rows": TILE_ROWS,
    "parts": (1, 2, 4, 8, 16, 32),
    "columns": (16, 32, 64, 128),
    "features": (32, 64, 128, 256),
    "shrink_warps": (2, 4, 8),
    "shrink_stages": (2, 3, 4, 5),
    "outputs": (32, 64, 128, 256),
    "ranks": (16, 32, 64),
    "expand_warps": (2, 4, 8),
    "expand_stages": (1, 2, 3),
    "early": (0, 1),
}
"""The values to try for each size."""

WORTH = 0.98
"""A choice is better if it takes at most this share of the best time. Smaller gains are noise."""


def neighbours(tiles: Tiles, size: str) -> Iterator[Tiles]:
    """Yield the same sizes with each other value of one size."""
    for value in STEPS[size]:
        wanted: Any = bool(value) if size == "early" else value
        if wanted != getattr(tiles, size):
            yield replace(tiles, **{size: wanted})


def best_tiles(
    start: Tiles, measure: Measure, may_go_on: Callable[[], bool] = lambda: True
) -> tuple[Tiles, float]:
    """Measure until changing any single size brings no gain. Returns the sizes and their time.

    Sizes that can't run, for example because they need too much shared memory, take `math.inf`.
    """
    times: dict[Tiles, float] = {start: measure(start)}
    best = start
    while True:
        before = best
        for field in fields(Tiles):
            for tiles in neighbours(best, field.name):
                if not may_go_on():
                    return best, times[best]
                if tiles not in times:
                    times[tiles] = measure(tiles)
                if times[tiles] < WORTH * times[best] or math.isinf(times[best]):
                    best = tiles
        if best == before:
            return best, times[best]


def layer_shapes(
    config: Mapping[str, Any], max_rank: int, tensor_parallel: int = 1
) -> dict[str, Shape]:
    """Return the shapes of a model's wrapped layers, from its config.json.

    An unknown architecture is taken for a Llama: the sizes are enough to measure with.

    Raises:
        ValueError: the configuration lacks a value, or the layers can't be split in this way.
    """
    text = dict(config.get("text_config") or config)
    try:
        family = family_of(text)
    except ValueError:
        family = LLAMA
    try:
        sizes = LayerSizes.of(family, {"num_hidden_layers": 1, **text})
        heads = int(text["num_attention_heads"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"the configuration has no {error}") from None
    hidden, inner, head = sizes.hidden, sizes.mlp, sizes.query // heads
    kv_heads = sizes.key_value // head
    if heads % tensor_parallel or inner % tensor_parallel:
        raise ValueError(
            f"{heads} heads and {inner} features can't be split {tensor_parallel} ways"
        )
    q, inner = head * heads // tensor_parallel, inner // tensor_parallel
    kv = head * max(1, kv_heads // tensor_parallel)
    fused = family.is_fused
    return {
        "qkv": Shape(hidden, (q + 2 * kv,) if fused else (q, kv, kv), max_rank),
        "o": Shape(q, (hidden,), max_rank),
        "gate_up": Shape(hidden, (2 * inner,) if fused else (inner, inner), max_rank),
        "down": Shape(inner, (hidden,), max_rank),
    }


def adapters_of(num_rows: int, num_slots: int) -> Iterable[int]:
    """Return the slot of each row of a batch to measure with.

    Up to 256 rows stand for decoding: the rows of as many adapters as possible are mixed. More rows
    stand for prompts: there are four adapters, and the rows of each are together.
    """
    if num_rows <= 256:
        return [row % num_slots for row in range(num_rows)]
    together = min(4, num_slots)
    return [row * together // num_rows for row in range(num_rows)]
