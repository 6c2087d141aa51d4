"""The operator against plain products: ranks, mixes of adapters, base rows, slots, slices."""

from typing import Any

import pytest
import torch

from server.engine.worker.lora_gpu.operators import launch, operators, workspace_shape
from server.engine.worker.lora_gpu.tile_table import Tiles
from tests.server.engine.worker.lora_gpu.kernels.layers import (
    BASE,
    DEVICE,
    DTYPE,
    Layer,
    check,
    make_wrapper,
    random,
    take,
)

SMALL = Tiles(16, 16, 16, 1, 4, 2, 16, 16, 4, 1)
QKV = (64, 32, 32)


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(1)


@pytest.mark.parametrize("rank", [1, 8, 12, 16, 64])
def test_every_rank(rank: int) -> None:
    layer = Layer(64, QKV, max_rank=64)
    layer.write(1, rank, rank, rank, stale=torch.nan)
    check(layer, [1, 1, BASE, 1])


def test_each_adapter_has_its_own_rank() -> None:
    layer = Layer(64, QKV, max_rank=64)
    for slot, rank in enumerate([8, 12, 16, 64]):
        layer.write(slot, rank, rank, rank, stale=torch.nan)
    check(layer, [0, 1, 2, 3, BASE, 3, 2, 1, 0])


def test_ranks_differ_between_slices() -> None:
    layer = Layer(64, QKV, max_rank=32)
    layer.write(0, 8, 32, 12, stale=torch.nan)
    layer.write(2, 32, 1, 8, stale=torch.nan)
    check(layer, [2, 0, 0, 2])


def test_adapters_lack_slices_or_the_whole_layer() -> None:
    layer = Layer(64, QKV, max_rank=16)
    layer.write(0, 16, 0, 16, stale=torch.nan)
    layer.write(1, 0, 0, 8, stale=torch.nan)
    layer.write(2, 0, 0, 0, stale=torch.nan)
    check(layer, [0, 1, 2, 1, 0, 2])


@pytest.mark.parametrize("outputs", [(48,), (40, 40), (64, 32, 32), (16, 24, 8, 40)])
def test_one_slice_or_several(outputs: tuple[int, ...]) -> None:
    layer = Layer(96, outputs, max_rank=16)
    layer.write(0, *[16] * len(outputs))
    layer.write(3, *[8] * len(outputs), stale=torch.nan)
    check(layer, [0, 3, BASE, 0])


def test_sizes_that_are_no_multiple_of_anything() -> None:
    layer = Layer(101, (37, 19), max_rank=12)
    layer.write(0, 12, 5)
    layer.write(1, 3, 12)
    check(layer, [1, 0, BASE, 1, 0])


def test_one_row() -> None:
    layer = Layer(64, (64,), max_rank=16)
    layer.write(2, 16, stale=torch.nan)
    check(layer, [2])


def test_a_batch_without_adapters_leaves_y_alone() -> None:
    layer = Layer(64, (64,), max_rank=16)
    check(layer, [BASE] * 5)


def test_a_graph_with_kernels_replayed_without_adapters_leaves_y_alone() -> None:
    layer, wrapper = Layer(64, (64,), max_rank=16), make_wrapper()
    layer.write(0, 16)
    take(wrapper, [0, 0])
    take(wrapper, [BASE, BASE])
    wrapper.token_mapping_meta.no_lora_flag_cpu[0] = False  # as it was when it was captured
    y, x = random(2, 64), random(2, 64)
    before = y.clone()
    wrapper.add_lora_linear(y, x, layer.a, layer.b, 1.0, layer.outputs)
    assert torch.equal(y, before)


def test_rows_that_pad_a_graph_are_left_alone() -> None:
    layer = Layer(64, QKV, max_rank=16)
    layer.write(0, 16, 16, 16)
    layer.write(1, 8, 8, 8)
    check(layer, [1, 0, 1], num_rows=16)


def test_a_prompt_has_tall_tiles() -> None:
    layer = Layer(64, QKV, max_rank=16)
    for slot in range(3):
        layer.write(slot, 16, 16, 8)
    check(layer, [2] * 150 + [0] * 70 + [BASE] * 40 + [1] * 65)


def test_batches_follow_each_other() -> None:
    layer, wrapper = Layer(64, (64,), max_rank=16), make_wrapper()
    for slot in range(4):
        layer.write(slot, 16)
    for slots in ([0] * 40, [3, 1, BASE], [BASE] * 3, [2], [0, 1, 2, 3] * 8):
        check(layer, slots, wrapper)


def test_a_slot_is_taken_over_by_a_smaller_adapter() -> None:
    layer, wrapper = Layer(64, (64,), max_rank=64), make_wrapper()
    layer.write(1, 64)
    check(layer, [1, 1], wrapper)
    layer.write(1, 8, stale=torch.nan)
    check(layer, [1, 1], wrapper)


def test_the_scale_is_applied() -> None:
    layer = Layer(64, (64,), max_rank=16)
    layer.write(0, 16)
    check(layer, [0, BASE], scale=0.25)


def test_without_adding_only_what_adapters_have_is_written() -> None:
    layer, wrapper = Layer(64, (32, 32), max_rank=16), make_wrapper()
    layer.write(0, 16, 0)
    take(wrapper, [0, BASE])
    x, y = random(2, 64), torch.full((2, 64), 5.0, dtype=DTYPE)
    wrapper.add_lora_linear(y, x, layer.a, layer.b, 1.0, layer.outputs, add_inputs=False)
    torch.testing.assert_close(y[0, :32].float(), layer.delta(x, [0, BASE])[0, :32], **CLOSE)
    assert bool((y[0, 32:] == 5).all())
    assert bool((y[1] == 5).all())


@pytest.mark.parametrize("active", [1, 2, 3])
def test_launches_fit_the_graphs_of_few_adapters(active: int) -> None:
    layer, wrapper = Layer(64, (64,), max_rank=16), make_wrapper(specialize_active_lora=True)
    for slot in range(4):
        layer.write(slot, 16)
    check(layer, [3, 0, 2][:active] * 11, wrapper)


def test_weights_may_lie_in_any_order_in_memory() -> None:
    layer = Layer(64, QKV, max_rank=16)
    layer.a, layer.b = layer.a[::-1], layer.b[::-1]
    layer.outputs = QKV[::-1]
    layer.__dict__.update(known=operators().layer(layer.a, layer.b))
    layer.in_slots = type(layer.in_slots)([layer.known], 4)
    layer.write(0, 16, 8, 16)
    check(layer, [0, 0])


@pytest.mark.parametrize(
    "tiles",
    [
        SMALL,
        Tiles(16, 32, 32, 8, 4, 3, 32, 16, 4, 2),
        Tiles(32, 64, 16, 4, 4, 3, 64, 32, 4, 2),
        Tiles(64, 16, 64, 2, 4, 3, 16, 64, 4, 2),
        Tiles(128, 128, 128, 1, 8, 3, 128, 64, 8, 2),
        Tiles(16, 16, 32, 3 + 1, 4, 3, 16, 16, 4, 2, early=False),
    ],
)
def test_every_choice_of_tiles_gives_the_same(tiles: Tiles) -> None:
    layer, wrapper = Layer(96, QKV, max_rank=64), make_wrapper()
    layer.write(0, 64, 12, 0, stale=torch.nan)
    layer.write(2, 16, 16, 64, stale=torch.nan)
    slots = [0] * 20 + [2, BASE] * 7
    take(wrapper, slots)
    x, y = random(len(slots), 96), random(len(slots), layer.width)
    before = y.clone()
    workspace = torch.full(workspace_shape(layer.known.shape, tiles, len(x)), torch.nan)
    rows = wrapper.token_mapping_meta.token_indices_sorted_by_lora_ids
    launch(
        y, x, layer.a[0], layer.b[0], layer.known, tiles, wrapper.tiles, rows, 4, 1.0,
        add_inputs=True, workspace=workspace,
    )  # fmt: skip
    torch.testing.assert_close(y.float(), before.float() + layer.delta(x, slots), **CLOSE)


@pytest.mark.skipif(DEVICE != "cuda", reason="the interpreter has no graphs")
def test_a_captured_graph_follows_batches_and_slots() -> None:
    layer, wrapper = Layer(64, QKV, max_rank=16), make_wrapper()
    for slot in range(3):
        layer.write(slot, 16, 16, 16)
    x, y = random(16, 64), random(16, layer.width)
    take(wrapper, [0, 1, 2, BASE])

    def step() -> None:
        wrapper.add_lora_linear(y, x, layer.a, layer.b, 1.0, layer.outputs)

    step()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for slots in ([2, 2, 0], [BASE] * 9, [1, BASE, 0] * 5, [2] * 16):
        layer.write(2, 8, 0, 12, stale=torch.nan)
        take(wrapper, slots)
        before, padded = y.clone(), [*slots, *[BASE] * (16 - len(slots))]
        graph.replay()
        expected = before.float() + layer.delta(x, padded)
        torch.testing.assert_close(y.float(), expected, rtol=2e-2, atol=5e-2)
        assert torch.equal(y[torch.tensor(padded) == BASE], before[torch.tensor(padded) == BASE])


def test_inputs_that_do_not_fit_are_refused() -> None:
    layer, wrapper = Layer(64, (64,), max_rank=16), make_wrapper()
    layer.write(0, 16)
    take(wrapper, [0])
    with pytest.raises(ValueError, match="the layer has 64 -> 64, rank 16"):
        wrapper.add_lora_linear(random(1, 32), random(1, 64), layer.a, layer.b, 1.0, (64,))
    with pytest.raises(ValueError, match="float32"):
        wrapper.add_lora_linear(random(1, 64), random(1, 64).float(), layer.a, layer.b, 1.0, (64,))


CLOSE: dict[str, Any] = {"rtol": 1e-2, "atol": 5e-2 if DEVICE == "cuda" else 1e-2}
