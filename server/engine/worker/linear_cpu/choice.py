"""Measures which of two ways to compute a layer is faster on this processor, now."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import torch

log = logging.getLogger(__name__)

Product = Callable[[torch.Tensor], torch.Tensor]

ROWS = (1, 16, 256)
"""One stream, many streams, a step of prompts."""
TRIES, SECONDS = 5, 0.3
"""At least so many for each number of rows, and so long. The fastest counts: other programs on the
machine can only make a product slower, but they can do that for a tenth of a second."""
LEAST_GAIN, LARGEST_LOSS = 1.1, 0.9


def is_faster(
    own: Product,
    stock: Product,
    in_features: int,
    clock: Callable[[], float] = time.perf_counter,
) -> bool:
    """Say whether `own` is faster than `stock` over all, and at no number of rows much slower."""
    gains = [_gain(own, stock, rows, in_features, clock) for rows in ROWS]
    mean = math.prod(gains) ** (1 / len(gains))
    faster = mean >= LEAST_GAIN and min(gains) >= LARGEST_LOSS
    log.info(
        "the base's matrix products: %s (the compiled kernel is %s times as fast as vLLM's with "
        "%s rows)",
        "the compiled kernel" if faster else "vLLM's",
        ", ".join(f"{gain:.1f}" for gain in gains),
        ", ".join(map(str, ROWS)),
    )
    return faster


def _gain(
    own: Product, stock: Product, rows: int, in_features: int, clock: Callable[[], float]
) -> float:
    x = torch.rand(rows, in_features).to(torch.bfloat16)
    seconds: dict[Product, list[float]] = {own: [], stock: []}
    end = clock() + SECONDS
    while len(seconds[stock]) < TRIES or clock() < end:
        for product, times in seconds.items():
            began = clock()
            product(x)
            times.append(clock() - began)
    return min(seconds[stock]) / max(min(seconds[own]), 1e-9)
