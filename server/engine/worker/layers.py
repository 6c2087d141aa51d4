"""Makes wrapped linear layers run less Python code at each call.

vLLM's wrapper repeats the work that the layer itself does around its matrix product, 120 times a
step on the bundled base. Here the layer does its own work, and the adapters' part is added to the
result.
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
    """Give all wrapped layers with these LoRA operators in this process the shorter `forward`.

    Two members of `operators` are used: `step`, the rows of the current batch, and
    `add_lora_linear`.
    """
    for kind in (ColumnParallelLinearWithLoRA, RowParallelLinearWithLoRA):
        kind.forward = shortened(kind.forward, operators)


def shortened(forward: Forward, operators: type[Any]) -> Forward:
    """Return a `forward` that calls the layer directly wherever that gives the same result.

    If the weights are divided among several processes (`tp_size`), adapters must be added before
    the processes' parts are summed. The short way is then possible only in a step without adapters.
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
