"""Chooses which of two ways to compute layers is faster on this processor, by measuring both."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import torch

from server.engine.worker.compiled import KernelUnavailable
from server.engine.worker.linear_cpu.kernel import LinearKernel, PackedLinear

log = logging.getLogger(__name__)

Product = Callable[[torch.Tensor], torch.Tensor]

ROWS = (1, 16, 256)
"""One stream, many streams, a step of prompts."""
TRIES, SECONDS = 5, 0.3
"""At least so many for each number of rows, and so long. The fastest counts: other programs on the
machine can only make a product slower, but they can do that for a tenth of a second."""
LEAST_GAIN, LARGEST_LOSS = 1.1, 0.55
"""The loss is of one number of rows. Products are less than half of what a prompt takes."""
FEW_ROWS = 16
"""With so many the compiled decoder takes the place of vLLM's layers."""

TYPICAL_NUMBERS = 100_000
"""A layer with so many weights shows which products are faster."""


class Choice:
    """Which layers of one kind take compiled products: all or none after the first typical one."""

    def __init__(
        self,
        kind: str,
        *,
        always: bool,
        when_used: Callable[[], None],
        saved: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Decide for the layers of a `kind`.

        `always`: don't measure which is faster. `when_used` is called before each layer that gets
        compiled products. `saved` returns the seconds that are saved beside each product of a few
        rows if they are taken.
        """
        self._kind, self._saved = kind, saved
        self._when_used = when_used
        self._kernel: LinearKernel | None = None
        self._is_chosen: bool | None = True if always else None
        """None until a typical layer has been measured."""

    def packed(
        self,
        num_weights: int,
        pack: Callable[[LinearKernel], PackedLinear],
        stock: Callable[[], Product],
        in_features: int,
    ) -> PackedLinear | None:
        """Return a layer as the kernel reads it, or None if it keeps vLLM's products.

        `pack` makes it, and `stock` is called for vLLM's product where both are to be measured.
        """
        measured = None
        if self._is_chosen is None and num_weights >= TYPICAL_NUMBERS:
            kernel = self._compiled()
            if kernel is not None:
                measured = pack(kernel)
                self._is_chosen = is_faster(
                    self._kind, measured.apply, stock(), in_features, self._saved()
                )
        kernel = self._compiled() if self._is_chosen else None
        if kernel is None:
            return None
        self._when_used()
        return measured or pack(kernel)

    def _compiled(self) -> LinearKernel | None:
        if self._kernel is None:
            try:
                self._kernel = LinearKernel()
            except KernelUnavailable as error:
                log.warning("%s are slower without the compiled kernel: %s", self._kind, error)
                self._is_chosen = False
        return self._kernel


def is_faster(
    kind: str,
    own: Product,
    stock: Product,
    in_features: int,
    saved: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> bool:
    """Say whether `own` is faster than `stock` over all, and at no number of rows much slower.

    `saved`: seconds that are saved beside a product of a few rows if `own` is taken.
    """
    gains = [_gain(own, stock, rows, in_features, saved, clock) for rows in ROWS]
    mean = math.prod(gains) ** (1 / len(gains))
    faster = mean >= LEAST_GAIN and min(gains) >= LARGEST_LOSS
    log.info(
        "%s: %s (with all that it saves, the compiled kernel is %s times as fast as vLLM's with %s "
        "rows)",
        kind,
        "the compiled kernel" if faster else "vLLM's",
        ", ".join(f"{gain:.1f}" for gain in gains),
        ", ".join(map(str, ROWS)),
    )
    return faster


def _gain(
    own: Product,
    stock: Product,
    rows: int,
    in_features: int,
    saved: float,
    clock: Callable[[], float],
) -> float:
    x = torch.rand(rows, in_features).to(torch.bfloat16)
    seconds: dict[Product, list[float]] = {own: [], stock: []}
    end = clock() + SECONDS
    while len(seconds[stock]) < TRIES or clock() < end:
        for product, times in seconds.items():
            began = clock()
            product(x)
            times.append(clock() - began)
    more = saved if rows <= FEW_ROWS else 0.0
    return (min(seconds[stock]) + more) / max(min(seconds[own]), 1e-9)
