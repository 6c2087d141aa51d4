"""Gives vLLM's linear layers with weights in 4 bits the compiled products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from vllm.model_executor.kernels.linear.mixed_precision.cpu import CPUWNA16LinearKernel
from vllm.scalar_type import scalar_types

from server.engine.worker.linear_cpu.choice import Choice, Product
from server.engine.worker.linear_cpu.dispatch import is_compiled_by_torch, saved_by_decoder
from server.engine.worker.linear_cpu.kernel import (
    WORD_WEIGHTS,
    LinearKernel,
    PackedLinear,
    fits_four_bit,
    pack_four_bit,
)


def replace_four_bit_products(*, always: bool, when_used: Callable[[], None]) -> None:
    """Make vLLM give its layers in 4 bits compiled products, if they are faster or `always`.

    `when_used` is called before each layer that gets one.
    """
    kind = "the base's 4-bit matrix products"
    choice = Choice(kind, always=always, when_used=when_used, saved=saved_by_decoder)
    stock = CPUWNA16LinearKernel
    products = FourBitProducts(stock.process_weights_after_loading, stock.apply_weights, choice)
    # As functions of the class, so that vLLM's kernel is their first argument.
    stock.process_weights_after_loading = lambda kernel, layer: products.process(kernel, layer)
    stock.apply_weights = lambda kernel, layer, x, bias=None: products.apply(kernel, layer, x, bias)


class FourBitProducts:
    """Takes the place of the two functions of vLLM's `CPUWNA16LinearKernel`."""

    def __init__(
        self, process: Callable[..., None], apply: Callable[..., torch.Tensor], choice: Choice
    ) -> None:
        """`process` and `apply`: vLLM's own."""
        self._process, self._apply, self._choice = process, apply, choice

    def process(self, kernel: Any, layer: Any) -> None:
        """Bring a layer's loaded weight into the form of the products that are chosen for it."""
        words, scales, zeros = _weight(kernel, layer)
        packed = None
        is_processed = False

        def packed_by(own: LinearKernel) -> PackedLinear:
            return PackedLinear(
                own, pack_four_bit(words, scales, zeros), getattr(layer, "bias", None)
            )

        def stock() -> Product:
            nonlocal is_processed
            self._process(kernel, layer)
            is_processed = True
            return lambda x: self._apply(kernel, layer, x, None)

        if (
            _is_plain(kernel.config)
            and fits_four_bit(words, scales, zeros)
            and not is_compiled_by_torch()
        ):
            num_weights = kernel.config.partition_weight_shape[0] * len(words)
            in_features = kernel.config.partition_weight_shape[0]
            packed = self._choice.packed(num_weights, packed_by, stock, in_features)
        if packed is not None:
            layer.loraplex_packed = packed
            names = [kernel.w_q_name, kernel.w_s_name]
            names += [kernel.w_zp_name] if kernel.config.zero_points else []
            for name in names:  # they are in memory once
                getattr(layer, name).data = torch.empty(0)
        elif not is_processed:
            self._process(kernel, layer)

    def apply(self, kernel: Any, layer: Any, x: torch.Tensor, bias: Any) -> torch.Tensor:
        """Return the product of x with a layer."""
        packed: PackedLinear | None = getattr(layer, "loraplex_packed", None)
        if packed is None:
            return self._apply(kernel, layer, x, bias)
        return packed.apply(x, with_bias=bias is not None)


def _weight(kernel: Any, layer: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return the loaded words, scales and zeros with features out first, in any file's order."""
    words, scales = getattr(layer, kernel.w_q_name), getattr(layer, kernel.w_s_name)
    zeros = getattr(layer, kernel.w_zp_name) if kernel.config.zero_points else None
    return (
        words.data.t() if words.input_dim == 0 else words.data,
        scales.data.t() if scales.output_dim == 1 else scales.data,
        None if zeros is None else _unpacked(zeros.data.t() if zeros.output_dim else zeros.data),
    )


def _unpacked(zeros: torch.Tensor) -> torch.Tensor:
    """Return zero points (features out, groups) of words (features out / WORD_WEIGHTS, groups)."""
    shifts = 4 * torch.arange(WORD_WEIGHTS, dtype=torch.int32)
    numbers = zeros[:, None] >> shifts[None, :, None] & 15
    return (numbers - 8).to(torch.int8).reshape(-1, zeros.shape[1])


def _is_plain(config: Any) -> bool:
    kind = scalar_types.uint4 if config.zero_points else scalar_types.uint4b8
    return bool(config.weight_type == kind) and config.act_type == torch.bfloat16
