"""Gives vLLM's linear layers the compiled products when their weights have been loaded."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch

from server.engine.worker.compiled import KernelUnavailable
from server.engine.worker.linear_cpu.choice import is_faster
from server.engine.worker.linear_cpu.kernel import LinearKernel, PackedLinear, fits

log = logging.getLogger(__name__)

Dispatch = Callable[[Any, bool], None]
"""vLLM's function: it sets `layer.cpu_linear(x, weight, bias)`, and may free `layer.weight`."""

TYPICAL_NUMBERS = 100_000
"""A layer with so many weights shows which products are faster."""


def replace_products(*, always: bool, when_used: Callable[[], None]) -> None:
    """Make vLLM give its layers compiled products, if they are faster or `always`.

    `when_used` is called before the first layer gets one.
    """
    from vllm.model_executor.layers import utils

    stock = utils.dispatch_cpu_unquantized_gemm
    utils.dispatch_cpu_unquantized_gemm = Products(stock, always=always, when_used=when_used)


class Products:
    """Takes the place of vLLM's `dispatch_cpu_unquantized_gemm`."""

    def __init__(self, stock: Dispatch, *, always: bool, when_used: Callable[[], None]) -> None:
        """`stock`: vLLM's own. `always`: don't measure which is faster."""
        self._stock = stock
        self._when_used = functools.cache(when_used)
        self._kernel: LinearKernel | None = None
        self._is_chosen: bool | None = True if always else None
        """None until a typical layer has been measured."""

    def __call__(self, layer: Any, remove_weight: bool) -> None:
        """Set `layer.cpu_linear`. The first typical layer decides for all that follow."""
        if layer.weight.is_meta or not fits(layer.weight) or _is_compiled():
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
        if self._is_chosen is None and layer.weight.numel() >= TYPICAL_NUMBERS:
            self._choose(layer)
        kernel = self._compiled() if self._is_chosen else None
        if kernel is None:
            self._stock(layer, remove_weight)
            return
        self._when_used()
        packed = PackedLinear(kernel, layer.weight, getattr(layer, "bias", None))
        layer.loraplex_packed = packed
        layer.cpu_linear = lambda x, _weight, bias: packed.apply(x, with_bias=bias is not None)
        if remove_weight:
            layer.weight = torch.nn.Parameter(torch.empty(0, dtype=torch.bfloat16), False)

    def _choose(self, layer: Any) -> None:
        kernel, weight = self._compiled(), layer.weight
        if kernel is not None:
            own = PackedLinear(kernel, weight).apply
            self._stock(layer, False)
            stock = layer.cpu_linear
            faster = is_faster(own, lambda x: stock(x, weight, None), weight.shape[1])
            self._is_chosen = faster

    def _compiled(self) -> LinearKernel | None:
        if self._kernel is None:
            try:
                self._kernel = LinearKernel()
            except KernelUnavailable as error:
                log.warning("the base is slower without the compiled kernel: %s", error)
                self._is_chosen = False
        return self._kernel


def _is_compiled() -> bool:
    """Say whether torch.compile compiles the model. It can look into vLLM's products only."""
    from vllm.config import CompilationMode, get_current_vllm_config

    return bool(get_current_vllm_config().compilation_config.mode != CompilationMode.NONE)
