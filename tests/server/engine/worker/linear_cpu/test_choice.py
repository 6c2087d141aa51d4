"""Which products are taken."""

from __future__ import annotations

import itertools

import pytest
import torch

from server.engine.worker.linear_cpu.choice import ROWS, TRIES, is_faster


class Machine:
    """Computes products in a time that stands for itself."""

    def __init__(self) -> None:
        self.now = 0.0
        self.noise = itertools.cycle([5.0, 0.0, 3.0])
        self.calls: list[int] = []

    def product(self, seconds: dict[int, float]) -> object:
        def compute(x: torch.Tensor) -> torch.Tensor:
            self.calls.append(len(x))
            self.now += seconds[len(x)] + next(self.noise)
            return x

        return compute


@pytest.mark.parametrize(
    ("own", "faster"),
    [
        ((1.0, 1.0, 1.0), True),
        ((2.0, 2.0, 2.0), False),  # nothing is gained
        ((1.95, 1.95, 1.95), False),  # too little
        ((0.5, 0.5, 2.1), True),  # a little slower with prompts
        ((0.2, 0.2, 4.0), False),  # prompts would take twice as long
        ((4.0, 1.0, 1.0), False),
    ],
)
def test_it_is_taken_if_it_is_faster_and_nowhere_much_slower(
    own: tuple[float, ...], faster: bool
) -> None:
    machine = Machine()
    ours = machine.product(dict(zip(ROWS, own, strict=True)))
    stock = machine.product(dict.fromkeys(ROWS, 2.0))
    assert is_faster("x", ours, stock, 8, clock=lambda: machine.now) is faster  # type: ignore[arg-type]
    assert len(machine.calls) == 2 * TRIES * len(ROWS)


@pytest.mark.parametrize(("saved", "faster"), [(0.0, False), (3.0, True)])
def test_what_is_saved_beside_products_of_few_rows_counts(saved: float, faster: bool) -> None:
    machine = Machine()
    ours = machine.product(dict(zip(ROWS, (2.0, 2.0, 3.0), strict=True)))
    stock = machine.product(dict.fromkeys(ROWS, 2.0))
    found = is_faster("x", ours, stock, 8, saved, lambda: machine.now)  # type: ignore[arg-type]
    assert found is faster
