"""The check at start: kernels that are right pass, and none of these faults does."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from server.engine.worker.lora_gpu.operators import launch, operators
from server.engine.worker.lora_gpu.self_check import failure
from server.engine.worker.lora_gpu.slots import check_kernels
from server.engine.worker.lora_gpu.tile_table import Entry, Tiles, TileTable
from server.engine.worker.lora_gpu.weights import Shape
from tests.server.engine.worker.lora_gpu.kernels.layers import BASE, DEVICE, DTYPE, Layer, check

SHAPE = Shape(64, (32, 16), 16)


def with_nan(y: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    launch(y, *args, **kwargs)
    y[0, 0] = torch.nan


def with_base_rows_touched(y: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    launch(y, *args, **kwargs)
    y += 0.01


def with_a_wrong_column(y: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    launch(y, *args, **kwargs)
    y[3, 1] += 1


def with_nothing_done(y: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    """A kernel that returns too early."""


def with_an_error(y: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    raise RuntimeError("out of shared memory\nand much more")


@pytest.fixture
def _fallback_undone() -> Iterator[None]:
    yield
    operators().fallback = None
    operators().table = TileTable()


@pytest.mark.parametrize("shape", [SHAPE, Shape(96, (40,), 64), Shape(101, (37, 19), 12)])
def test_right_kernels_pass(shape: Shape) -> None:
    assert failure(TileTable(), [shape], DTYPE, DEVICE) is None


@pytest.mark.parametrize(
    ("run", "why"),
    [
        (with_nan, "a row is off by nan"),
        (with_base_rows_touched, "rows without an adapter were changed"),
        (with_a_wrong_column, "a row is off by"),
        (with_nothing_done, "a row is off by"),
        (with_an_error, "RuntimeError: out of shared memory"),
    ],
)
def test_wrong_kernels_are_found(run: Callable[..., None], why: str) -> None:
    found = failure(TileTable(), [SHAPE], DTYPE, DEVICE, run)
    assert found is not None
    assert found.startswith("64 -> 32+16, rank 16, up to 16 rows: ")
    assert why in found
    assert "much more" not in found


@pytest.mark.usefixtures("_fallback_undone")
def test_vllms_kernels_take_over(caplog: pytest.LogCaptureFixture) -> None:
    """With a real fault: tiles that the kernels can't have (a row of tiles is never computed)."""

    class Broken(TileTable):
        def choose(self, shape: Shape, num_rows: int) -> Tiles:
            raise RuntimeError("no tiles")

        def variants(self, shape: Shape) -> dict[int, Tiles]:
            return {16: Tiles(16, 1 << 22, 16, 1, 4, 2, 16, 16, 4, 1)}

    layer = Layer(64, (32, 16), max_rank=16)
    layer.write(0, 16, 16)
    layer.write(1, 8, 8)
    known = operators()
    known.table = Broken()
    with caplog.at_level(logging.WARNING):
        check_kernels([layer.known], known, DEVICE)
    (line,) = caplog.messages
    assert line.startswith("our LoRA kernels failed their self-check (64 -> 32+16, rank 16")
    assert line.endswith("vLLM's are used, which are slower")
    check(layer, [0, 1, BASE])  # would raise in our own


@pytest.mark.usefixtures("_fallback_undone")
def test_kernels_that_pass_stay(caplog: pytest.LogCaptureFixture) -> None:
    layer = Layer(64, (32,), max_rank=8)
    operators().table = TileTable(
        [Entry(layer.known.shape, 16, Tiles(16, 16, 16, 2, 4, 2, 16, 16, 4, 1))]
    )
    with caplog.at_level(logging.WARNING):
        check_kernels([layer.known], operators(), DEVICE)
    assert not caplog.messages
    assert operators().fallback is None
