"""The CPU operators against exact products: mixed ranks, base rows, slots taken over."""

from __future__ import annotations

import gc
import shutil
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.worker.compiled import KernelUnavailable, compile_library
from server.engine.worker.lora_cpu.kernel import RowsKernel
from server.engine.worker.lora_cpu.steps import make_step
from server.engine.worker.punica import GroupedPunicaWrapper
from tests.long_form import examples

SLOTS, MAX_RANK = 4, 64
OPERATORS = ["compiled", "products"]
LOST = 4 * torch.finfo(torch.float32).eps


def make_wrapper(operators: str = "products", slots: list[int] | None = None) -> Any:
    punica = GroupedPunicaWrapper(4096, 64, "cpu", lora_config=SimpleNamespace(max_loras=SLOTS))
    if operators == "products":
        punica.kernel = None
    elif punica.kernel is None:
        pytest.skip("there is no C compiler")
    punica.set_rows(slots or [], slots or [])
    return punica


class Layer:
    """Fused projections: vLLM's stacked weights, and the same packed into slots."""

    def __init__(self, features: int, widths: tuple[int, ...], dtype: torch.dtype) -> None:
        self.widths = widths
        self.a = tuple(torch.zeros(SLOTS, 1, MAX_RANK, features, dtype=dtype) for _ in widths)
        self.b = tuple(torch.zeros(SLOTS, 1, out, MAX_RANK, dtype=dtype) for out in widths)
        self.ranks: dict[int, tuple[int, ...]] = {}

    def write(self, slot: int, ranks: tuple[int, ...], scale: float = 1.0) -> None:
        """An adapter whose scale is folded into B (vLLM's way); rank 0: projection untouched."""
        for a, b, rank in zip(self.a, self.b, ranks, strict=True):
            a[slot], b[slot] = 0, 0
            a[slot, 0, :rank] = torch.randn(rank, a.shape[3])
            b[slot, 0, :, :rank] = torch.randn(b.shape[2], rank) * scale
        self.ranks[slot] = ranks

    def place(self, punica: Any) -> None:
        """Fill the slots that have been written to."""
        layer = punica.layer(self.a, self.b, self.widths)
        for slot, ranks in self.ranks.items():
            a = [part[slot, 0, :r] if r else None for part, r in zip(self.a, ranks, strict=True)]
            b = [part[slot, 0, :, :r] for part, r in zip(self.b, ranks, strict=True)]
            layer.place(slot, layer.pack(a, b))

    def apply(self, punica: Any, x: torch.Tensor, y: torch.Tensor, scale: float = 1.0) -> Any:
        result = y.clone()
        self.place(punica)
        punica.add_lora_linear(result, x, self.a, self.b, scale, self.widths)
        return result

    def reference(self, slots: list[int], x: torch.Tensor, y: torch.Tensor, scale: float) -> Any:
        """The result in float64, and the size of the terms that it sums."""
        expected, size, offset = y.double(), y.double().abs(), 0
        for a, b, width in zip(self.a, self.b, self.widths, strict=True):
            for row, slot in enumerate(slots):
                if slot >= 0:
                    a_slot, b_slot, x_row = (
                        a[slot, 0].double(),
                        b[slot, 0].double(),
                        x[row].double(),
                    )
                    shrunk = a_slot @ x_row * scale
                    expected[row, offset : offset + width] += b_slot @ shrunk
                    # And what summing A x in float32 loses where its terms cancel.
                    lost = a_slot.abs() @ x_row.abs() * scale * LOST / torch.finfo(x.dtype).eps
                    size[row, offset : offset + width] += b_slot.abs() @ (shrunk.abs() + lost)
            offset += width
        return expected, size


def tensors_of(layer: Layer) -> Any:
    return layer.a, layer.b, layer.widths


def assert_close(result: torch.Tensor, reference: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Equal but for the rounding of a few steps to the result's type; sums are float32."""
    expected, size = reference
    error = (result.double() - expected).abs()
    assert bool((error <= 2 * torch.finfo(result.dtype).eps * size + 1e-6).all())


@st.composite
def layers(draw: Any) -> tuple[int, tuple[int, ...], list[tuple[int, ...]]]:
    widths = tuple(draw(st.lists(st.sampled_from([1, 15, 16, 33, 530]), min_size=1, max_size=3)))
    rank = st.sampled_from([0, 1, 2, 3, 8, 12, 16, 33, 64])
    ranks = draw(st.lists(st.tuples(*[rank for _ in widths]), min_size=SLOTS, max_size=SLOTS))
    return draw(st.sampled_from([1, 16, 24, 100])), widths, ranks


@st.composite
def rows(draw: Any) -> list[int]:
    """Runs of rows, some as long as a prompt."""
    runs = st.tuples(st.integers(-1, SLOTS - 1), st.sampled_from([1, 1, 1, 2, 3, 5, 130]))
    return [slot for slot, n in draw(st.lists(runs, min_size=1, max_size=8)) for _ in range(n)]


@pytest.mark.parametrize("operators", OPERATORS)
@settings(deadline=None, max_examples=examples(60))
@given(
    layer=layers(),
    slots=rows(),
    scales=st.tuples(st.sampled_from([1.0, 0.25, 3.0]), st.sampled_from([1.0, 0.125, 5.7])),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([torch.bfloat16, torch.bfloat16, torch.float32]),
)
def test_each_row_gets_its_own_adapter(
    operators: str, layer: Any, slots: list[int], scales: Any, seed: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(seed)
    features, widths, ranks = layer
    weights = Layer(features, widths, dtype)
    for slot, ranks_of_slot in enumerate(ranks):
        weights.write(slot, ranks_of_slot, scales[0])
    x = torch.randn(len(slots), features).to(dtype)
    y = torch.randn(len(slots), sum(widths)).to(dtype)
    result = weights.apply(make_wrapper(operators, slots), x, y, scales[1])
    assert_close(result, weights.reference(slots, x, y, scales[1]))
    base_rows = [row for row, slot in enumerate(slots) if slot < 0]
    assert torch.equal(result[base_rows], y[base_rows])


@pytest.mark.parametrize("features", [24, 100, 576])
def test_a_row_is_the_same_whatever_is_beside_it(features: int) -> None:
    torch.manual_seed(5)
    weights = Layer(features, (64, 33), torch.bfloat16)
    weights.write(0, (16, 33))
    x = torch.randn(20, features).to(torch.bfloat16)
    y = torch.randn(20, 97).to(torch.bfloat16)
    alone = [
        weights.apply(make_wrapper("compiled", [0]), x[i : i + 1], y[i : i + 1]) for i in range(20)
    ]
    for rows in (2, 3, 4, 5, 6, 7, 8, 20):
        together = weights.apply(make_wrapper("compiled", [0] * rows), x[:rows], y[:rows])
        assert torch.equal(together, torch.cat(alone[:rows]))


@pytest.mark.parametrize("operators", OPERATORS)
def test_a_slot_is_taken_over_and_emptied(operators: str) -> None:
    torch.manual_seed(0)
    slots = [0, -1, 1, 0]
    punica, weights = make_wrapper(operators, slots), Layer(48, (20, 12), torch.bfloat16)
    x, y = torch.randn(4, 48).bfloat16(), torch.randn(4, 32).bfloat16()
    weights.write(1, (3, 3))
    for rank in (7, 0, 64, 2):
        weights.write(0, (rank, 8))
        assert_close(weights.apply(punica, x, y), weights.reference(slots, x, y, 1.0))
    layer = punica.layer(weights.a, weights.b, weights.widths)
    adapter = weakref.ref(layer.adapter(0))
    layer.place(0, layer.nothing)
    punica.add_lora_linear(result := y.clone(), x, weights.a, weights.b, 1.0, weights.widths)
    assert torch.equal(result[[0, 1, 3]], y[[0, 1, 3]])
    layer.place(0, None)
    with pytest.raises(ValueError, match="slot 0 is empty"):
        punica.add_lora_linear(y, x, weights.a, weights.b, 1.0, weights.widths)
    gc.collect()
    assert adapter() is None, "its memory isn't free"


def test_packing_refuses_what_does_not_fit() -> None:
    layer = make_wrapper().layer(*tensors_of(Layer(16, (8,), torch.bfloat16)))
    a, b = torch.ones(4, 16), torch.ones(8, 4)
    for wrong_a, wrong_b in ((a[:, :15], b), (a, b[:7]), (a[:3], b), (a.repeat(17, 1), b)):
        with pytest.raises(ValueError, match="16 features in, 8 out and rank 64 at most"):
            layer.pack([wrong_a], [wrong_b])


@pytest.mark.parametrize("operators", OPERATORS)
def test_strided_inputs(operators: str) -> None:
    torch.manual_seed(0)
    slots = [2, 0, -1, 2]
    punica, weights = make_wrapper(operators, slots), Layer(40, (24,), torch.bfloat16)
    weights.write(0, (4,))
    weights.write(2, (9,))
    x = torch.randn(4, 100).bfloat16()[:, 30:70]
    y = torch.randn(4, 50).bfloat16()[:, :24]
    expected = weights.reference(slots, x, y, 1.0)
    weights.place(punica)
    punica.add_lora_linear(y, x, weights.a, weights.b, 1.0, weights.widths)
    assert_close(y, expected)


def test_a_batch_of_base_rows_touches_nothing() -> None:
    weights = Layer(16, (8,), torch.bfloat16)
    punica, y = make_wrapper("compiled", [-1, -1]), torch.randn(2, 8).bfloat16()
    assert torch.equal(weights.apply(punica, torch.randn(2, 16).bfloat16(), y), y)


@pytest.mark.parametrize("operators", OPERATORS)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_spoil_only_their_own_rows(
    operators: str, poison: float
) -> None:
    slots = [0, 1, -1, 1, 0]
    weights = Layer(20, (8, 5), torch.bfloat16)
    weights.write(0, (3, 5))
    weights.write(1, (3, 5))
    punica = make_wrapper(operators, slots)
    x, y = torch.randn(5, 20).bfloat16(), torch.randn(5, 13).bfloat16()
    expected, size = weights.reference(slots, x, y, 1.0)
    for stacked in (weights.a[0], weights.b[0], weights.b[1]):
        stacked[1].fill_(poison)
    result = weights.apply(punica, x, y)
    honest, poisoned = [0, 2, 4], [1, 3]
    assert_close(result[honest], (expected[honest], size[honest]))
    assert not result[poisoned].isfinite().all(dim=1).any()


def test_inconsistent_state_raises() -> None:
    weights = Layer(16, (8,), torch.bfloat16)
    punica = make_wrapper("products", [0, 1])
    x, y = torch.randn(2, 16).bfloat16(), torch.randn(2, 8).bfloat16()
    for wrong_x, wrong_y in ((x[:1], y[:1]), (x[:, :15], y), (x, y[:, :7])):
        with pytest.raises(ValueError, match="expected 2 rows, 16 features in and 8 out"):
            weights.apply(punica, wrong_x, wrong_y)
    with pytest.raises(ValueError, match=r"LoRA slots \[4\] of 4"):
        punica.set_rows([0, SLOTS], [])
    weights.write(0, (2,))
    with pytest.raises(ValueError, match="slot 1 is empty"):
        weights.apply(punica, x, y)
    other = Layer(16, (9,), torch.bfloat16)
    with pytest.raises(ValueError, match="not the known ones"):
        punica.add_lora_linear(y, x, weights.a, other.b, 1.0, (8,))
    with pytest.raises(ValueError, match="for 8 features out"):
        punica.add_lora_linear(y, x, Layer(16, (8,), torch.bfloat16).a, other.b, 1.0, (8,))
    with pytest.raises(ValueError, match="adds to"):
        punica.add_lora_linear(y, x, weights.a, weights.b, 1.0, (8,), add_inputs=False)


def test_without_a_compiler_all_is_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    compile_library.cache_clear()
    with pytest.raises(KernelUnavailable, match="no C compiler"):
        RowsKernel()
    assert make_wrapper().kernel is None


def test_shrink_and_expand_do_what_a_layer_does() -> None:
    torch.manual_seed(0)
    slots = [1, -1, 0, 1]
    punica, weights = make_wrapper("products", slots), Layer(12, (10, 6), torch.float32)
    weights.write(0, (3, 5))
    weights.write(1, (64, 1))
    x, y = torch.randn(4, 12), torch.randn(4, 16)
    buffers, result = tuple(torch.zeros(4, MAX_RANK) for _ in range(2)), y.clone()
    punica.add_shrink(buffers, x, weights.a, 0.5)
    punica.add_expand(result, buffers, weights.b, weights.widths)
    assert_close(result, weights.reference(slots, x, y, 0.5))


def test_embedding_and_logits() -> None:
    torch.manual_seed(0)
    slots, weights = [1, -1, 0], Layer(12, (10,), torch.float32)
    weights.write(0, (2,))
    weights.write(1, (7,))
    punica, x, y = make_wrapper("products", slots), torch.randn(3, 12), torch.randn(3, 10)
    logits = y.clone()
    punica.add_lora_logits(logits, x, weights.a[0], weights.b[0], 2.0)
    assert_close(logits, weights.reference(slots, x, y, 2.0))
    looked_up, embedded = torch.randn(3, MAX_RANK), y.clone()
    punica.add_lora_embedding(embedded, looked_up, weights.b[0])
    for row, slot in enumerate(slots):
        update = weights.b[0][slot, 0] @ looked_up[row] if slot >= 0 else torch.zeros(10)
        torch.testing.assert_close(embedded[row], y[row] + update)


def test_rows_are_shared_out() -> None:
    step = make_step([0, 0, -1, 2, 1, 2] + [0] * 8, max_loras=3)
    assert [(b.slot, list(b.row[: b.count])) for b in step.blocks] == [
        (0, [0, 1, 6, 7, 8, 9, 10, 11]),
        (0, [12, 13]),
        (1, [4]),
        (2, [3, 5]),
    ]
    step = make_step([0, 0, -1, 2, 1, 2], max_loras=3)
    assert step.groups[:2] == [(0, slice(0, 2)), (1, slice(4, 5))]
    assert step.groups[2][1].tolist() == [3, 5]  # type: ignore[union-attr]
