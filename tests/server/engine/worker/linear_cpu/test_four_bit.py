"""Which layers in 4 bits get compiled products."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.model_executor.kernels.linear.mixed_precision.cpu import CPUWNA16LinearKernel
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearLayerConfig
from vllm.scalar_type import scalar_types

from server.engine.worker.linear_cpu import choice, four_bit
from server.engine.worker.linear_cpu.choice import Choice
from server.engine.worker.linear_cpu.four_bit import FourBitProducts, replace_four_bit_products

HALF = torch.bfloat16
OUT, IN, GROUP = 512, 256, 32


class World:
    """vLLM's kernel with its own functions beside ours, on the same layer."""

    def __init__(self, *, always: bool = False, **different: Any) -> None:
        config = {
            "full_weight_shape": (IN, OUT),
            "partition_weight_shape": (IN, OUT),
            "weight_type": scalar_types.uint4b8,
            "act_type": HALF,
            "group_size": GROUP,
            "zero_points": False,
        }
        made = MPLinearLayerConfig(**(config | different))
        names = ("weight_packed", "weight_scale", "weight_zero_point")
        self.kernel = CPUWNA16LinearKernel(made, *names)
        self.used = 0
        self.products = FourBitProducts(
            CPUWNA16LinearKernel.process_weights_after_loading,
            CPUWNA16LinearKernel.apply_weights,
            Choice("products", always=always, when_used=self.use),
        )

    def use(self) -> None:
        self.used += 1

    def layer(self, *, features_out_first: bool = True) -> Any:
        """A layer as a loader leaves it, in the order of compressed-tensors or of GPTQ."""
        torch.manual_seed(0)
        words = torch.randint(-(2**31), 2**31, (OUT, IN // 8), dtype=torch.int32)
        scales = torch.rand(OUT, IN // GROUP).to(HALF)
        if not features_out_first:
            words, scales = words.t().contiguous(), scales.t().contiguous()
        first = 0 if features_out_first else 1
        packed = torch.nn.Parameter(words, requires_grad=False)
        packed.input_dim = packed.packed_dim = 1 - first  # type: ignore[attr-defined]
        packed.output_dim = first  # type: ignore[attr-defined]
        scale = torch.nn.Parameter(scales, requires_grad=False)
        scale.input_dim, scale.output_dim = 1 - first, first  # type: ignore[attr-defined]
        zeros = torch.randint(-(2**31), 2**31, (OUT // 8, IN // GROUP), dtype=torch.int32)
        zero = torch.nn.Parameter(
            zeros if features_out_first else zeros.t().contiguous(), requires_grad=False
        )
        zero.input_dim, zero.output_dim = 1 - first, first  # type: ignore[attr-defined]
        zero.packed_dim = first  # type: ignore[attr-defined]
        return SimpleNamespace(
            weight_packed=packed, weight_scale=scale, weight_zero_point=zero, bias=None
        )

    def multiply(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        return self.products.apply(self.kernel, layer, x, None)


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """With AMX vLLM rounds the scaled weights to bfloat16, so single numbers differ by more."""
    difference = (found - expected).float().norm(dim=1)
    assert (difference < 0.02 * expected.float().norm(dim=1)).all()


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(four_bit, "is_compiled_by_torch", lambda: False)


@pytest.mark.parametrize("features_out_first", [True, False])
@pytest.mark.parametrize(
    "different", [{}, {"weight_type": scalar_types.uint4, "zero_points": True}]
)
def test_an_answer_is_that_of_vllms_products(
    different: dict[str, Any], features_out_first: bool
) -> None:
    world = World(always=True, **different)
    layer = world.layer(features_out_first=features_out_first)
    world.products.process(world.kernel, layer)
    assert world.used == 1
    assert layer.weight_packed.numel() == 0, "the weight is in memory once"
    stock = world.layer(features_out_first=features_out_first)
    world.kernel.process_weights_after_loading(stock)
    for rows in (1, 7, 40):
        x = torch.randn(rows, IN).to(HALF)
        assert_same(world.multiply(layer, x), world.kernel.apply_weights(stock, x))


@pytest.mark.parametrize("faster", [True, False])
def test_the_first_layer_decides(monkeypatch: pytest.MonkeyPatch, faster: bool) -> None:
    measured = []

    def is_faster(_kind: str, own: Any, stock: Any, in_features: int, _saved: float) -> bool:
        x = torch.randn(3, in_features).to(HALF)
        assert_same(own(x), stock(x))
        measured.append(in_features)
        return faster

    monkeypatch.setattr(choice, "is_faster", is_faster)
    world, x = World(), torch.randn(2, IN).to(HALF)
    answers = []
    for _ in range(2):
        layer = world.layer()
        world.products.process(world.kernel, layer)
        assert hasattr(layer, "loraplex_packed") == faster
        answers.append(world.multiply(layer, x))
    assert measured == [IN]
    assert torch.equal(*answers)


@pytest.mark.parametrize(
    "different", [{"act_type": torch.float16}, {"weight_type": scalar_types.uint4}]
)
def test_other_layers_keep_vllms(different: dict[str, Any]) -> None:
    world = World(always=True, **different)
    processed = []
    world.products._process = lambda _kernel, layer: processed.append(layer)
    layer = world.layer()
    world.products.process(world.kernel, layer)
    assert processed == [layer]


def test_vllms_kernel_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("process_weights_after_loading", "apply_weights"):
        monkeypatch.setattr(CPUWNA16LinearKernel, name, getattr(CPUWNA16LinearKernel, name))
    replace_four_bit_products(always=True, when_used=lambda: None)
    world = World()
    layer = world.layer()
    world.kernel.process_weights_after_loading(layer)
    assert hasattr(layer, "loraplex_packed")
    assert world.kernel.apply_weights(layer, torch.ones(1, IN, dtype=HALF)).shape == (1, OUT)
