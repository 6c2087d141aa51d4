"""Fills slots on CPU, where a slot holds a pointer to an adapter's packed weights.

vLLM fills a slot inside the engine's step: for every layer it zeroes and copies padded tensors.
Here an adapter is packed once, in any thread, before it needs a slot (`pack_adapter`). Giving it
the slot is then one assignment for each layer, and vLLM's padded tensors take no memory.
"""

from __future__ import annotations

import functools
from typing import Any

from vllm.lora.layers import BaseLayerWithLoRA
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.layers.classifier import ClassificationHeadWithLoRA
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LoRAModelManager

from server.engine.worker.lora_cpu.packing import PackedAdapter, PackedLayer


@functools.cache
def fill_with_packed_weights() -> None:
    """Replace the method with which vLLM's slot managers in this process fill a slot."""
    LoRAModelManager.activate_adapter = _activate_adapter


def pack_adapter(manager: LoRAModelManager, adapter: LoRAModel) -> None:
    """Replace an adapter's weights by packed ones, in the layers that read packed weights.

    Raises:
        ValueError: the weights don't fit the base.
    """
    for name, module in manager.modules.items():
        weights = adapter.loras.get(name)
        if weights is None or isinstance(weights, PackedAdapter):
            continue
        if (layer := packed_layer(manager, module)) is not None:
            a, b = _parts(module, weights)
            try:
                adapter.loras[name] = layer.pack(a, b)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error


def clear_slot(manager: LoRAModelManager, slot: int) -> None:
    """Release the packed weights in a slot."""
    for module in manager.modules.values():
        if (layer := packed_layer(manager, module)) is not None:
            layer.place(slot, None)


def _activate_adapter(manager: LoRAModelManager, version_id: int) -> bool:
    """Put a registered adapter into a free slot. Returns False if it has one already.

    Raises:
        ValueError: no slot is free, or the weights cannot be packed.
    """
    if version_id in manager._active_adapters:
        return False
    if None not in manager.lora_index_to_id:
        raise ValueError("No free lora slots")
    adapter = manager._registered_adapters[version_id]
    pack_adapter(manager, adapter)
    slot = manager.lora_index_to_id.index(None)
    for name, module in manager.modules.items():
        weights = adapter.loras.get(name)
        if (layer := packed_layer(manager, module)) is not None:
            layer.place(slot, weights or layer.nothing)
        elif weights is None:
            module.reset_lora(slot)
        else:
            module.set_lora(slot, weights.lora_a, weights.lora_b)
    manager._active_adapters[version_id] = None
    manager.lora_index_to_id[slot] = version_id
    return True


def packed_layer(manager: LoRAModelManager, module: BaseLayerWithLoRA) -> PackedLayer | None:
    """Return the slots of a linear layer, or None if the layer reads vLLM's padded tensors."""
    if (
        not isinstance(module, BaseLinearLayerWithLoRA)
        or isinstance(module, ClassificationHeadWithLoRA)
        or manager.lora_config.fully_sharded_loras
    ):
        return None
    layer_of = getattr(module.punica_wrapper, "layer", None)
    if layer_of is None:  # vLLM's own operators
        return None
    layer: PackedLayer = layer_of(
        module.lora_a_stacked, module.lora_b_stacked, module.output_slices
    )
    return layer


def _parts(module: BaseLinearLayerWithLoRA, weights: Any) -> tuple[list[Any], list[Any]]:
    """Return this worker's part of A and B of each projection, as vLLM's `set_lora` does."""
    a, b = weights.lora_a, weights.lora_b
    if isinstance(b, list) and len(b) != module.n_slices:
        a, b = module.expand_packed_lora(a, b)
    if module.tp_size > 1:
        a, b = module.slice_lora_a(a), module.slice_lora_b(b)
    return (a, b) if isinstance(b, list) else ([a], [b])
