"""Wrapped linear layers that run less Python code at each call.

vLLM's wrapper repeats what the layer itself does around its product, at each of 120 calls a step
on the bundled base. Here the layer does its own work, and the adapters' part is added to that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from vllm.lora.layers import ColumnParallelLinearWithLoRA, RowParallelLinearWithLoRA

Forward = Callable[[Any, torch.Tensor], Any]


@functools.cache
def shorten_wrapped_layers(operators: type[Any]) -> None:
    """Make wrapped layers with these LoRA operators use the short way, in this process.

    `operators` has two members that are used here: `step`, the rows of the present batch, and
    `add_lora_linear`.
    """
    for kind in (ColumnParallelLinearWithLoRA, RowParallelLinearWithLoRA):
        kind.forward = shortened(kind.forward, operators)


def shortened(forward: Forward, operators: type[Any]) -> Forward:
    """Return a wrapper's `forward` that takes the short way if the result is the same.

    With weights shared out over several processes (`tp_size`), adapters are added before the
    processes' parts are: only a step without adapters can go the short way then.
    """

    @functools.wraps(forward)
    def forward_shortly(layer: Any, x: torch.Tensor) -> Any:
        lora = layer.punica_wrapper
        if not isinstance(lora, operators):
            return forward(layer, x)
        if not lora.step.groups:
            return layer.base_layer.forward(x)
        if layer.tp_size > 1 or x.ndim != 2:
            return forward(layer, x)
        output = layer.base_layer.forward(x)
        y = output[0] if isinstance(output, tuple) else output
        lora.add_lora_linear(
            y, x, layer.lora_a_stacked, layer.lora_b_stacked, 1.0, layer.output_slices
        )
        return output

    return forward_shortly
