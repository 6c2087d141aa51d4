"""Gives vLLM's linear layers the compiled products when their weights have been loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from server.engine.worker.linear_cpu.choice import Choice, Product
from server.engine.worker.linear_cpu.kernel import LinearKernel, PackedLinear, fits, pack

Dispatch = Callable[[Any, bool], None]
"""vLLM's function: it sets `layer.cpu_linear(x, weight, bias)`, and may free `layer.weight`."""


def replace_products(*, always: bool, when_used: Callable[[], None]) -> None:
    """Make vLLM give its layers in bfloat16 compiled products, if they are faster or `always`.

    `when_used` is called before each layer that gets one.
    """
    from vllm.model_executor.layers import utils

    kind = "the base's matrix products"
    choice = Choice(kind, always=always, when_used=when_used, saved=saved_by_decoder)
    utils.dispatch_cpu_unquantized_gemm = Products(utils.dispatch_cpu_unquantized_gemm, choice)


class Products:
    """Takes the place of vLLM's `dispatch_cpu_unquantized_gemm`."""

    def __init__(self, stock: Dispatch, choice: Choice) -> None:
        """`stock`: vLLM's own."""
        self._stock, self._choice = stock, choice

    def __call__(self, layer: Any, remove_weight: bool) -> None:
        """Set `layer.cpu_linear`."""
        if layer.weight.is_meta or not fits(layer.weight) or is_compiled_by_torch():
            self._stock(layer, remove_weight)
        elif remove_weight:
            self._set(layer, remove_weight)
        else:
            self._set_later(layer)

    def _set_later(self, layer: Any) -> None:
        """Wait for the first product: embeddings have none unless they are the output layer too."""

        def first_product(x: Any, weight: Any, bias: Any) -> Any:
            self._set(layer, False)
            return layer.cpu_linear(x, weight, bias)

        layer.cpu_linear = first_product

    def _set(self, layer: Any, remove_weight: bool) -> None:
        weight, bias = layer.weight, getattr(layer, "bias", None)

        def packed_by(kernel: LinearKernel) -> PackedLinear:
            return PackedLinear(kernel, pack(weight), bias)

        def stock() -> Product:
            self._stock(layer, False)
            product = layer.cpu_linear
            return lambda x: product(x, weight, None)

        packed = self._choice.packed(weight.numel(), packed_by, stock, weight.shape[1])
        if packed is None:
            self._stock(layer, remove_weight)
            return
        layer.loraplex_packed = packed
        layer.cpu_linear = lambda x, _weight, bias: packed.apply(x, with_bias=bias is not None)
        if remove_weight:
            layer.weight = torch.nn.Parameter(torch.empty(0, dtype=torch.bfloat16), False)


DECODER_SAVES = 100e-6
"""Seconds. On two cores a layer of vLLM's took 1.2 ms longer than one of the decoder: 0.3 ms a
product."""


def saved_by_decoder() -> float:
    """Return what the compiled decoder saves beside each product, if the model may take it.

    vLLM tells its configuration while it loads a model. The first large layer may be measured
    later, and then nothing is known.
    """
    from vllm.config import get_current_vllm_config_or_none

    config = get_current_vllm_config_or_none()
    is_llama = config is not None and config.model_config.architectures == ["LlamaForCausalLM"]
    return DECODER_SAVES if is_llama else 0.0


def is_compiled_by_torch() -> bool:
    """Say whether torch.compile compiles the model. It can look into vLLM's products only."""
    from vllm.config import CompilationMode, get_current_vllm_config

    return bool(get_current_vllm_config().compilation_config.mode != CompilationMode.NONE)
