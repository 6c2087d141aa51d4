"""Fills slots while steps run, from an image of the adapter's file, on a CUDA stream of its own.

It can't load weights that are divided among several GPUs, or files with several types of numbers.
vLLM's own code loads those.
"""

from __future__ import annotations

import logging
import tempfile
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LoRAModelManager

from server.engine.worker.lora_cpu.files import AdapterFile, Projection
from server.engine.worker.lora_gpu.image import AdapterImage, make_image
from server.engine.worker.lora_gpu.slots import FollowedLayers
from server.engine.worker.lora_gpu.transfer import Lane, SlotTransfer
from server.engine.worker.reader import Layers, Plan, places

log = logging.getLogger(__name__)


class ImageAdapter(LoRAModel):  # type: ignore[misc]
    """An adapter in vLLM's table whose weights are an image."""

    def __init__(self, version_id: int, rank: int, image: AdapterImage) -> None:
        """Hold the image. For vLLM the adapter has no weights."""
        super().__init__(version_id, rank, {})
        self.image = image


class SlotFilling:
    """Fills a manager's slots. It also makes images for the reader, as its `FastWay`."""

    def __init__(self, manager: LoRAModelManager, followed: FollowedLayers, lane: Lane) -> None:
        """Make the stream's buffers."""
        self._manager = manager
        self._followed = followed
        self._index = {name: i for i, name in enumerate(followed.modules)}
        self.places = places(
            manager,
            {
                name: followed.layers[i].shape.num_slices
                for name, i in self._index.items()
                if followed.modules[name].tp_size == 1
            },
        )
        self._transfer = SlotTransfer(
            followed.modules[next(iter(self._index))].lora_a_stacked[0], lane
        )

    def plan(self, file: AdapterFile, layers: Layers) -> Plan | None:
        """See `reader.FastWay`."""
        by_index = {self._index[name]: projections for name, projections in layers.items()}
        image = make_image(file, self._followed.layers, by_index)
        if image is None:
            return None
        table = replace(image, numbers=np.empty(0, np.uint8))  # of any file of this shape

        def model(version_id: int, rank: int, file: AdapterFile) -> LoRAModel:
            return ImageAdapter(version_id, rank, replace(table, numbers=file.numbers))

        return model

    def begin(self, version_id: int) -> Future[None] | None:
        """Give an adapter a free slot and begin to fill it. Returns None if it is filled at once.

        Raises:
            ValueError: no slot is free.
        """
        adapter = self._manager._registered_adapters[version_id]
        if not isinstance(adapter, ImageAdapter):
            self._manager.activate_adapter(version_id)
            return None
        slots = self._manager.lora_index_to_id
        if None not in slots:
            raise ValueError("No free lora slots")
        slot = slots.index(None)
        slots[slot] = version_id
        self._manager._active_adapters[version_id] = None
        return self._transfer.begin(adapter.image, slot)

    def finish(self, version_id: int) -> None:
        """Tell the kernels the ranks of an adapter whose slot has been filled."""
        adapter = self._manager._registered_adapters[version_id]
        if isinstance(adapter, ImageAdapter):
            slot = self._manager.lora_index_to_id.index(version_id)
            self._followed.set_image_ranks(slot, adapter.image.ranks)

    def fill_now(self, version_id: int) -> bool:
        """Fill a slot for vLLM's own code and wait. Returns False if the adapter had one before."""
        if version_id in self._manager._active_adapters:
            return False
        if (filling := self.begin(version_id)) is not None:
            filling.result()
            self.finish(version_id)
        return True

    def works(self) -> bool:
        """Fill an unused slot with an adapter of the first layer and compare the result.

        Returns True if it is right. The slot is zero again afterwards.
        """
        module, layer = next(iter(self._followed.modules.values())), self._followed.layers[0]
        rank = max(1, layer.shape.max_rank * 3 // 4 - 1)
        a = torch.randn(rank, layer.shape.features, device="cpu").to(layer.dtype)
        b = torch.randn(layer.shape.outputs[0], rank, device="cpu").to(layer.dtype)
        with tempfile.TemporaryDirectory() as folder:
            save_file({"a": a, "b": b}, path := Path(folder) / "x.safetensors")
            file = AdapterFile(path)
        pair = Projection(file.matrices["a"], file.matrices["b"], 0.5)
        others = [None] * (layer.shape.num_slices - 1)
        image = make_image(file, self._followed.layers, {0: [pair, *others]})
        slot = self._manager.lora_index_to_id.index(None)
        try:
            assert image is not None, "one type only"
            self._transfer.begin(image, slot).result()
            of_a = module.lora_a_stacked[0][slot, 0].cpu()
            of_b = module.lora_b_stacked[0][slot, 0].cpu()
            return (
                torch.equal(of_a[:rank], a)
                and torch.equal(of_b[:, :rank], (b.float() * 0.5).to(b.dtype))
                and not of_a[rank:].any()
                and not of_b[:, rank:].any()
            )
        except Exception as error:
            log.warning("filling slots on a stream of its own: %s", error)
            return False
        finally:
            module.reset_lora(slot)
