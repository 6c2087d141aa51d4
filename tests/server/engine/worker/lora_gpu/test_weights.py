"""Stacks as the kernels find them, and the ranks in slots."""

import pytest
import torch

from server.engine.worker.lora_gpu.weights import LayerWeights, SlotRanks


def stacks(
    features: int = 32, outputs: tuple[int, ...] = (16, 8), rank: int = 16, slots: int = 3
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    a = [torch.zeros(slots, 1, rank, features, dtype=torch.float16) for _ in outputs]
    return a, [torch.zeros(slots, 1, out, rank, dtype=torch.float16) for out in outputs]


def test_a_slice_is_found_by_its_distance_from_the_first() -> None:
    a, b = stacks()
    layer = LayerWeights(a, b)
    for i, (a_offset, b_offset, b_stride, width) in enumerate(layer.geometry.tolist()):
        assert a[0].data_ptr() + 2 * a_offset == a[i].data_ptr()
        assert b[0].data_ptr() + 2 * b_offset == b[i].data_ptr()
        assert (b_stride, width) == (b[i].stride(0), b[i].shape[2])
    assert (layer.shape.max_columns, layer.shape.label) == (32, "32 -> 16+8, rank 16")


@pytest.mark.parametrize(
    ("features", "rank", "aligned"), [(32, 16, True), (36, 16, False), (32, 4, False)]
)
def test_alignment_is_known(features: int, rank: int, aligned: bool) -> None:
    assert LayerWeights(*stacks(features, rank=rank)).aligned is aligned


def test_slots_count_as_full_until_told() -> None:
    layers = [LayerWeights(*stacks()), LayerWeights(*stacks(outputs=(8,)))]
    ranks = SlotRanks(layers, 3)
    assert layers[0].ends.tolist() == [[16, 32]] * 3
    assert layers[1].ends.tolist() == [[16]] * 3
    ranks.set(1, [[8, 0], [16]])
    assert layers[0].ends.tolist() == [[16, 32], [8, 8], [16, 32]]
    assert layers[1].ends.tolist() == [[16]] * 3


def test_ranks_are_rounded_up_to_what_a_thread_loads() -> None:
    layers = [LayerWeights(*stacks(rank=64)), LayerWeights(*stacks(rank=1))]
    SlotRanks(layers, 3).set(0, [[12, 1], [1, 0]])
    assert layers[0].ends[0].tolist() == [16, 24]
    assert layers[1].ends[0].tolist() == [1, 1]


@pytest.mark.parametrize("ranks", [[[17, 0]], [[-1, 0]], [[1]], [[1, 1, 1]]])
def test_ranks_that_do_not_fit_are_refused(ranks: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="rank"):
        SlotRanks([LayerWeights(*stacks())], 3).set(0, ranks)


def test_stacks_that_do_not_fit_are_refused() -> None:
    a, b = stacks()
    other_rank = torch.zeros(3, 1, 8, 8, dtype=torch.float16)
    strided = torch.zeros(3, 1, 16, 64, dtype=torch.float16)[..., ::2]
    for wrong_a, wrong_b, why in (
        (a, b[:1], "2 slices of A and 1 of B"),
        (a, [b[0], other_rank], "slots or rank"),
        ([a[0], a[1][:, :, :8]], b, "differ in shape"),
        ([strided, strided], b, "contiguous"),
        (a, [b[0], b[1].float()], "different types"),
    ):
        with pytest.raises(ValueError, match=why):
            LayerWeights(wrong_a, wrong_b)
