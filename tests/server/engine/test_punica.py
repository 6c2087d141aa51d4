"""The CPU operators against float32 products, with base rows mixed in."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.punica import GroupedPunicaWrapper, group_rows

MAX_LORAS, MAX_RANK, IN, OUTS = 3, 8, 12, (10, 6)


@pytest.fixture(scope="module")
def weights() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Stacked A and B for two fused projections; slot s has rank s + 1, zero-padded."""
    torch.manual_seed(0)
    a = [torch.zeros(MAX_LORAS, 1, MAX_RANK, IN) for _ in OUTS]
    b = [torch.zeros(MAX_LORAS, 1, out, MAX_RANK) for out in OUTS]
    for slot in range(MAX_LORAS):
        for index, out in enumerate(OUTS):
            a[index][slot, 0, : slot + 1] = torch.randn(slot + 1, IN)
            b[index][slot, 0, :, : slot + 1] = torch.randn(out, slot + 1)
    return a, b


def wrapper(slots: list[int]) -> GroupedPunicaWrapper:
    punica = GroupedPunicaWrapper(64, 64, "cpu")
    punica.token_groups = punica.sampler_groups = group_rows(slots)
    return punica


def reference(x, y, slots, weights, scale):  # type: ignore[no-untyped-def]
    expected = y.clone()
    for row, slot in enumerate(slots):
        offset = 0
        for a, b in zip(*weights, strict=True):
            width = b.shape[2]
            if slot >= 0:
                update = b[slot, 0] @ (a[slot, 0] @ x[row]) * scale
                expected[row, offset : offset + width] += update
            offset += width
    return expected


@settings(deadline=None, max_examples=60)
@given(slots=st.lists(st.integers(-1, MAX_LORAS - 1), min_size=1, max_size=12))
def test_each_row_gets_its_own_adapter(weights, slots: list[int]) -> None:  # type: ignore[no-untyped-def]
    x, y = torch.randn(len(slots), IN), torch.randn(len(slots), sum(OUTS))
    expected = reference(x, y, slots, weights, 0.5)
    one_call, two_calls = y.clone(), y.clone()
    punica = wrapper(slots)
    punica.add_lora_linear(one_call, x, *map(tuple, weights), 0.5, OUTS)
    torch.testing.assert_close(one_call, expected)
    buffers = tuple(torch.zeros(len(slots), MAX_RANK) for _ in OUTS)
    punica.add_shrink(buffers, x, tuple(weights[0]), 0.5)
    punica.add_expand(two_calls, buffers, tuple(weights[1]), OUTS)
    torch.testing.assert_close(two_calls, expected)


def test_base_rows_are_bit_equal(weights) -> None:  # type: ignore[no-untyped-def]
    slots = [-1, 2, -1, 2, 0, -1]
    x, y = torch.randn(6, IN), torch.randn(6, sum(OUTS))
    result = y.clone()
    wrapper(slots).add_lora_linear(result, x, *map(tuple, weights), 1.0, OUTS)
    base_rows = [row for row, slot in enumerate(slots) if slot < 0]
    assert torch.equal(result[base_rows], y[base_rows])
    assert not torch.equal(result, y)


def test_embedding_and_logits(weights) -> None:  # type: ignore[no-untyped-def]
    slots, (a, b) = [1, -1, 0], (weights[0][0], weights[1][0])
    punica, x = wrapper(slots), torch.randn(3, IN)
    logits = torch.zeros(3, OUTS[0])
    punica.add_lora_logits(logits, x, a, b, 2.0)
    expected = torch.stack(
        [
            b[s, 0] @ a[s, 0] @ x[row] * 2 if s >= 0 else torch.zeros(OUTS[0])
            for row, s in enumerate(slots)
        ]
    )
    torch.testing.assert_close(logits, expected)
    looked_up, embedded = torch.randn(3, MAX_RANK), torch.zeros(3, OUTS[0])
    punica.add_lora_embedding(embedded, looked_up, b)
    expected = torch.stack(
        [
            b[s, 0] @ looked_up[row] if s >= 0 else torch.zeros(OUTS[0])
            for row, s in enumerate(slots)
        ]
    )
    torch.testing.assert_close(embedded, expected)


def test_grouping() -> None:
    neighbours, scattered = group_rows([0, 0, -1, 2, 1, 2])[0], group_rows([0, 0, -1, 2, 1, 2])[2]
    assert neighbours == (0, slice(0, 2))
    assert scattered[1].tolist() == [3, 5]  # type: ignore[union-attr]
    assert group_rows([-1, -1]) == []
