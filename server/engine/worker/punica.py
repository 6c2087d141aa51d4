"""LoRA operators for CPU that give each row its own adapter, and base rows none.

vLLM 0.32's CPU operators use slot -1, "no adapter", as an index like any other. So they apply the
last slot's adapter to base rows. They also gather a full A and B for every token. Here the rows of
a batch are grouped by slot, as in Punica's SGMV (Chen et al., 2023, arXiv:2310.18547), and a layer
is one call of a compiled kernel, at each adapter's own rank.

Linear layers read adapters packed (`server.engine.worker.slots` puts them into their slots). The
other layers, which Loraplex leaves unwrapped, read vLLM's stacked tensors.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from server.engine.worker.compiled import KernelUnavailable
from server.engine.worker.layers import shorten_wrapped_layers
from server.engine.worker.lora_cpu.kernel import RowsKernel
from server.engine.worker.lora_cpu.packing import PackedLayer
from server.engine.worker.lora_cpu.products import add_products
from server.engine.worker.lora_cpu.steps import Group, Step, group_rows, make_step
from server.engine.worker.slots import fill_with_packed_weights

log = logging.getLogger(__name__)


class GroupedPunicaWrapper(PunicaWrapperCPU):  # type: ignore[misc]
    """vLLM's interface to the LoRA operators, on grouped rows.

    Stacked weights have the shapes (slots, 1, rank, in) for A and (slots, 1, out, rank) for B.
    """

    def __init__(
        self, max_num_batched_tokens: int, max_batches: int, device: Any, **kwargs: Any
    ) -> None:
        """Compile the kernel. Without a compiler, matrix products are used instead."""
        super().__init__(max_num_batched_tokens, max_batches, device, **kwargs)
        fill_with_packed_weights()
        shorten_wrapped_layers(GroupedPunicaWrapper)
        self.max_loras: int = kwargs["lora_config"].max_loras
        self.kernel = _kernel()
        self._layers: dict[int, PackedLayer] = {}
        self.set_rows([], [])

    def update_metadata(self, mapping: Any, *args: Any, **kwargs: Any) -> None:
        """Group this step's rows, once for all layers."""
        super().update_metadata(mapping, *args, **kwargs)
        self.set_rows(self.token_lora_indices.tolist(), self.sampler_indices.tolist())

    def set_rows(self, tokens: list[int], samples: list[int]) -> None:
        """Set the slot of each token and of each sampled position, -1 for none."""
        self.step: Step = make_step(tokens, self.max_loras)
        self.sampler_groups: list[Group] = group_rows(samples)

    def layer(
        self,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        output_slices: tuple[int, ...],
    ) -> PackedLayer:
        """Return the slots of a linear layer, which is identified by its stacked tensors.

        Raises:
            ValueError: the tensors don't fit together.
        """
        layer = self._layers.get(id(lora_a_stacked))
        if layer is None:
            layer = PackedLayer(
                lora_a_stacked,
                lora_b_stacked,
                output_slices,
                for_kernel=self.kernel is not None,
            )
            self._layers[id(lora_a_stacked)] = layer
        if layer.stacked[1] is not lora_b_stacked or layer.widths != output_slices:
            raise ValueError("LoRA on a layer whose B or widths are not the known ones")
        return layer

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[torch.Tensor, ...] | None = None,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """Compute `y += x @ A.T @ B.T * scale` for each projection of a linear layer.

        Raises:
            ValueError: the tensors don't fit together, or a slot is empty.
        """
        step = self.step
        if not step.groups:
            return
        layer = self.layer(lora_a_stacked, lora_b_stacked, output_slices)
        _check_rows(y, x, step, layer, add_inputs)
        if self.kernel is not None and layer.for_kernel:
            self.kernel.add(y, x, layer, step.blocks, scale)
            return
        for slot, rows in step.groups:
            add_products(y, x, layer, layer.adapter(slot), rows, scale)

    def add_shrink(
        self,
        y: tuple[torch.Tensor, ...] | torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        scale: float,
        **kwargs: Any,
    ) -> None:
        """Compute `y[i] += x @ A[i].T * scale` for each projection i, by each row's adapter."""
        x = x.view(-1, x.shape[-1])
        for target, weights in zip(y, lora_a_stacked, strict=True):
            flat = target.view(-1, target.shape[-1])
            for slot, rows in self.step.groups:
                flat[rows] += (x[rows] @ weights[slot, 0].T * scale).to(flat.dtype)

    def add_expand(
        self,
        y: torch.Tensor,
        x: tuple[torch.Tensor, ...] | torch.Tensor,
        lora_b_stacked: tuple[torch.Tensor, ...],
        output_slices: tuple[int, ...],
        offset_start: int = 0,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """Compute `y[:, offset:offset + n] += x[i] @ B[i].T`, or `=` without `add_inputs`."""
        flat, offset = y.view(-1, y.shape[-1]), offset_start
        for source, weights, width in zip(x, lora_b_stacked, output_slices, strict=True):
            target = flat[:, offset : offset + width]
            for slot, rows in self.step.groups:
                update = source[rows].to(weights.dtype) @ weights[slot, 0].T
                _add(target, rows, update.to(flat.dtype), add_inputs)
            offset += width

    def add_lora_embedding(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """Compute `y += x @ B.T`. x holds the rows of A that the tokens have looked up."""
        for slot, rows in self.step.groups:
            update = x[rows].to(lora_b_stacked.dtype) @ lora_b_stacked[slot, 0].T
            _add(y[:, : update.shape[-1]], rows, update.to(y.dtype), add_inputs)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        *,
        buffer: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        """Compute `y += x @ A.T @ B.T * scale` on logits, whose rows are sampled positions."""
        flat, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        for slot, rows in self.sampler_groups:
            update = (x[rows] @ lora_a_stacked[slot, 0].T * scale) @ lora_b_stacked[slot, 0].T
            flat[rows, : update.shape[-1]] += update.to(flat.dtype)


@functools.cache
def _kernel() -> RowsKernel | None:
    try:
        return RowsKernel()
    except KernelUnavailable as error:
        log.warning("adapters are slower without the compiled LoRA kernel: %s", error)
        return None


def _check_rows(
    y: torch.Tensor, x: torch.Tensor, step: Step, layer: PackedLayer, add_inputs: bool
) -> None:
    rows, features = x.shape
    expected = (rows, layer.offsets[-1] + layer.widths[-1])
    if rows != step.num_rows or features != layer.features or y.shape != expected:
        raise ValueError(
            f"LoRA on x {tuple(x.shape)} and y {tuple(y.shape)}: expected "
            f"{step.num_rows} rows, {layer.features} features in and {expected[1]} out"
        )
    if not (x.dtype == y.dtype == layer.dtype) or x.stride(1) != 1 or y.stride(1) != 1:
        raise ValueError(f"LoRA of {layer.dtype} on x {x.dtype} {x.stride()}, y {y.dtype}")
    if not add_inputs:
        raise ValueError("LoRA on CPU adds to the layer's output")


def _add(
    target: torch.Tensor, rows: slice | torch.Tensor, update: torch.Tensor, add_inputs: bool
) -> None:
    if add_inputs:
        target[rows] += update
    else:
        target[rows] = update
