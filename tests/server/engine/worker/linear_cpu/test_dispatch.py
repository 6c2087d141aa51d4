"""Which layers get compiled products."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from server.engine.worker.compiled import compile_library
from server.engine.worker.linear_cpu import choice, dispatch
from server.engine.worker.linear_cpu.choice import Choice
from server.engine.worker.linear_cpu.dispatch import Products
from server.engine.worker.linear_cpu.kernel import PackedLinear

HALF = torch.bfloat16
LARGE, SMALL = (512, 256), (32, 16)


class World:
    """vLLM's side: which layers kept its own products."""

    def __init__(self, *, always: bool = False) -> None:
        self.stock: list[Any] = []
        self.used = 0
        made = Choice("products", always=always, when_used=self.use)
        self.products = Products(self.dispatch, made)

    def dispatch(self, layer: Any, remove_weight: bool) -> None:
        self.stock.append(layer)
        layer.cpu_linear = lambda x, _weight, _bias: x

    def use(self) -> None:
        self.used += 1

    def layer(self, shape: tuple[int, ...], dtype: torch.dtype = HALF) -> Any:
        torch.manual_seed(0)
        return SimpleNamespace(weight=torch.randn(shape).to(dtype), bias=None)

    def give(self, layer: Any, *, remove_weight: bool = True) -> Any:
        self.products(layer, remove_weight)
        return layer


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "is_compiled_by_torch", lambda: False)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What was measured, in favour of the compiled products."""
    calls: list[int] = []

    def is_faster(_kind: str, _own: Any, _stock: Any, in_features: int, _saved: float) -> bool:
        calls.append(in_features)
        return True

    monkeypatch.setattr(choice, "is_faster", is_faster)
    return calls


def is_packed(layer: Any) -> bool:
    return isinstance(getattr(layer, "loraplex_packed", None), PackedLinear)


def test_the_first_typical_layer_decides(measured: list[int]) -> None:
    world = World()
    small = world.give(world.layer(SMALL))
    assert not is_packed(small)
    first, second = world.give(world.layer(LARGE)), world.give(world.layer((64, 32)))
    assert is_packed(first)
    assert is_packed(second)
    assert measured == [LARGE[1]]
    assert world.used == 2
    assert first.weight.numel() == 0, "the weight is in memory once"


def test_slower_products_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "is_faster", lambda *_: False)
    world = World()
    assert not is_packed(world.give(world.layer(LARGE)))
    assert not is_packed(world.give(world.layer(LARGE)))
    assert world.used == 0


def test_an_answer_is_that_of_the_layer() -> None:
    world = World(always=True)
    layer = world.layer(SMALL)
    layer.bias = torch.randn(SMALL[0]).to(HALF)
    weight, x = layer.weight.clone(), torch.randn(3, SMALL[1]).to(HALF)
    world.give(layer)
    expected = torch.nn.functional.linear(x.float(), weight.float())
    assert torch.allclose(layer.cpu_linear(x, None, None).float(), expected, rtol=0.01, atol=0.05)
    expected += layer.bias.float()
    biased = layer.cpu_linear(x, None, layer.bias).float()
    assert torch.allclose(biased, expected, rtol=0.01, atol=0.05)


def test_embeddings_are_packed_when_they_are_multiplied() -> None:
    world = World(always=True)
    layer = world.give(world.layer(SMALL), remove_weight=False)
    assert not is_packed(layer)
    x = torch.randn(3, SMALL[1]).to(HALF)
    first = layer.cpu_linear(x, layer.weight, None)
    assert is_packed(layer)
    assert layer.weight.shape == SMALL, "rows of it are looked up"
    assert torch.equal(layer.cpu_linear(x, layer.weight, None), first)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((30, 16), HALF), (SMALL, torch.float32), ((4, 32, 16), HALF)]
)
def test_other_layers_keep_vllms(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    world = World(always=True)
    layer = world.give(world.layer(shape, dtype))
    assert world.stock == [layer]


def test_a_model_that_is_compiled_keeps_vllms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "is_compiled_by_torch", lambda: True)
    world = World(always=True)
    layer = world.give(world.layer(LARGE))
    assert world.stock == [layer]


def test_without_a_compiler_all_keep_vllms(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    compile_library.cache_clear()
    world = World(always=True)
    layers = [world.give(world.layer(LARGE)) for _ in range(2)]
    assert world.stock == layers
    assert caplog.text.count("no C compiler") == 1
