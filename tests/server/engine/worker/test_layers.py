"""The short way through wrapped layers: taken where it gives the same, and nowhere else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from server.engine.worker.layers import shortened


class Operators:
    def __init__(self, *groups: int) -> None:
        self.step = SimpleNamespace(groups=groups)

    def add_lora_linear(self, y: torch.Tensor, *_: Any) -> None:
        y += 1


class TheirOperators:
    pass


def layer(operators: Any, tp_size: int = 1, bias: bool = True) -> Any:
    def base(x: torch.Tensor) -> Any:
        return (x * 2, None) if bias else x * 2

    return SimpleNamespace(
        punica_wrapper=operators,
        tp_size=tp_size,
        base_layer=SimpleNamespace(forward=base),
        lora_a_stacked=(),
        lora_b_stacked=(),
        output_slices=(),
    )


forward = shortened(lambda layer, x: "vLLM's", Operators)
X = torch.ones(2, 3)


@pytest.mark.parametrize("tp_size", [1, 2])
def test_a_step_without_adapters_is_the_layers_own(tp_size: int) -> None:
    assert torch.equal(forward(layer(Operators(), tp_size), X)[0], X * 2)


def test_adapters_are_added_to_the_layers_output() -> None:
    output, bias = forward(layer(Operators(1)), X)
    assert torch.equal(output, X * 3)
    assert bias is None
    assert torch.equal(forward(layer(Operators(1), bias=False), X), X * 3)


def test_what_the_short_way_cannot_do_is_left_to_vllm() -> None:
    assert forward(layer(TheirOperators()), X) == "vLLM's"
    assert forward(layer(Operators(1), tp_size=2), X) == "vLLM's"
    assert forward(layer(Operators(1)), X[None]) == "vLLM's"
