"""Hooks into vLLM's slots: checks the kernels when layers are wrapped, and sets slots' ranks."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from vllm import envs
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.layers.classifier import ClassificationHeadWithLoRA
from vllm.lora.model_manager import LoRAModelManager

from server.engine.environment import gpu_lora_tiles
from server.engine.worker.lora_gpu.operators import Operators, operators
from server.engine.worker.lora_gpu.self_check import failure
from server.engine.worker.lora_gpu.tile_table import TileTable, load_table
from server.engine.worker.lora_gpu.weights import LayerWeights, SlotRanks

log = logging.getLogger(__name__)


class FollowedLayers:
    """The wrapped linear layers of one of vLLM's managers."""

    def __init__(self, manager: LoRAModelManager, known: Operators) -> None:
        """Find the layers and read their stacks.

        Raises:
            ValueError: the kernels can't read the stacks of a layer.
        """
        self._manager = manager
        self.modules = wrapped_layers(manager)
        self.layers: list[LayerWeights] = [
            known.layer(module.lora_a_stacked, module.lora_b_stacked)
            for module in self.modules.values()
        ]
        self._ranks = SlotRanks(self.layers, manager.lora_slots) if self.layers else None

    def set_ranks(self, slot: int, lora_id: int) -> None:
        """Tell the kernels the ranks of the adapter that was put into a slot."""
        if self._ranks is None:
            return
        adapter = self._manager._registered_adapters[lora_id]
        self._ranks.set(
            slot,
            [
                ranks_of(module, self._manager._get_lora_layer_weights(adapter, name))
                for name, module in self.modules.items()
            ],
        )

    def set_image_ranks(self, slot: int, ranks: Sequence[Sequence[int]]) -> None:
        """Tell the kernels the ranks of a slot's adapter, given for every layer."""
        if self._ranks is not None:
            self._ranks.set(slot, ranks)


def ranks_of(module: BaseLinearLayerWithLoRA, weights: Any) -> list[int]:
    """Return an adapter's rank in each slice of a layer, or the largest rank if it is not known."""
    num_slices = len(module.lora_a_stacked)
    if weights is None:
        return [0] * num_slices
    a, b = weights.lora_a, weights.lora_b
    if isinstance(b, list) and len(b) != num_slices and hasattr(module, "expand_packed_lora"):
        a, b = module.expand_packed_lora(a, b)
    if not isinstance(a, list):
        a, b = [a], [b]
    if len(a) != num_slices or len(b) != num_slices:
        return [module.lora_a_stacked[0].shape[2]] * num_slices
    pairs = zip(a, b, strict=True)
    return [0 if a_i is None or b_i is None else int(a_i.shape[0]) for a_i, b_i in pairs]


def wrapped_layers(manager: LoRAModelManager) -> dict[str, BaseLinearLayerWithLoRA]:
    """Return the layers whose adapters our operator applies, by name."""
    if manager.lora_config.fully_sharded_loras:  # then vLLM gathers between shrink and expand
        return {}
    return {
        name: module
        for name, module in manager.modules.items()
        if isinstance(module, BaseLinearLayerWithLoRA)
        and not isinstance(module, ClassificationHeadWithLoRA)
    }


def choose_table(known: Operators, device: str, tuned: Path | None) -> None:
    """Take the tile sizes for a GPU. An unreadable table is logged and then ignored."""
    try:
        known.table = load_table(tuned, device)
    except ValueError as error:
        known.table = TileTable()
        log.warning("%s: LoRA kernels get their tile sizes by rule", error)
    known.table.same_for_all_batches = envs.VLLM_BATCH_INVARIANT


def _card(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def check_kernels(layers: Sequence[LayerWeights], known: Operators, device: Any) -> None:
    """Try the kernels on every shape. If a result is wrong, use vLLM's kernels instead."""
    kinds = {(layer.shape, layer.dtype): None for layer in layers}
    for shape, dtype in kinds:
        wrong = failure(known.table, [shape], dtype, device)
        if wrong is not None:
            use_vllms_kernels(known, f"failed their self-check ({wrong})")
            return
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()  # or vLLM would count this memory as the model's
    log.info("LoRA kernels checked on %d shapes", len(kinds))


def heights_of(layers: Sequence[LayerWeights], table: TileTable) -> frozenset[int]:
    """Return the tile heights that these layers can use. A step makes only these."""
    shapes = {layer.shape for layer in layers}
    return frozenset(
        tiles.tile_rows for shape in shapes for tiles in table.variants(shape).values()
    )


def use_vllms_kernels(known: Operators, why: str) -> None:
    """Use vLLM's kernels from now on, and log why."""
    from server.engine.worker.lora_gpu.stock import add_with_vllm

    known.fallback = add_with_vllm
    log.warning("our LoRA kernels %s: vLLM's are used, which are slower", why)


@functools.cache
def follow_slots() -> None:
    """Patch vLLM's slot managers in this process to prepare the kernels and to set ranks."""
    LoRAModelManager._create_lora_modules = _then_prepare(LoRAModelManager._create_lora_modules)
    LoRAModelManager.activate_adapter = _then_set_ranks(LoRAModelManager.activate_adapter)


def _then_prepare(create: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(create)
    def create_and_prepare(manager: LoRAModelManager) -> None:
        create(manager)
        known = operators()
        choose_table(known, _card(torch.device(manager.device)), gpu_lora_tiles())
        try:
            manager.loraplex_layers = FollowedLayers(manager, known)
        except ValueError as error:
            use_vllms_kernels(known, f"can't read this base's layers ({error})")
            return
        layers = manager.loraplex_layers.layers
        check_kernels(layers, known, manager.device)
        if layers:
            known.heights = heights_of(layers, known.table)

    return create_and_prepare


def _then_set_ranks(activate: Callable[[Any, int], bool]) -> Callable[[Any, int], bool]:
    @functools.wraps(activate)
    def activate_and_set_ranks(manager: LoRAModelManager, lora_id: int) -> bool:
        fill_now: Callable[[int], bool] | None = getattr(manager, "loraplex_fill_now", None)
        if fill_now is not None and hasattr(manager._registered_adapters[lora_id], "image"):
            return fill_now(lora_id)
        activated = activate(manager, lora_id)
        layers: FollowedLayers | None = getattr(manager, "loraplex_layers", None)
        if activated and layers is not None:
            layers.set_ranks(manager.lora_index_to_id.index(lora_id), lora_id)
        return activated

    return activate_and_set_ranks
