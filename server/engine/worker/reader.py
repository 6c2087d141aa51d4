"""Reads an adapter's files into host memory, in any thread, while the engine runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest
from vllm.lora.utils import parse_fine_tuned_lora_name

from adapters_registry.check.peft_config import PeftConfig
from adapters_registry.content.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from server.engine.worker.lora_cpu.files import (
    AdapterFile,
    Matrix,
    PackParts,
    Projection,
    pack_file,
)
from server.engine.worker.lora_cpu.packing import PackedLayer
from server.engine.worker.slots import pack_adapter, packed_layer

Places = dict[str, tuple[str, int, int]]
"""The place of each projection: its layer's name, its index there, and their number there."""

Layers = dict[str, list[Projection | None]]
"""The projections of each layer that an adapter changes."""


class FastWay(Protocol):
    """Makes an adapter from a file in memory, and makes no tensors of its matrices."""

    places: Places

    def model(
        self, version_id: int, rank: int, file: AdapterFile, layers: Layers
    ) -> LoRAModel | None:
        """Return the adapter, or None if only vLLM's way can load it.

        Raises:
            ValueError: matrices do not fit.
        """


class PackedWay:
    """The fast way on CPU: compiled code packs the adapter for our kernel."""

    def __init__(self, manager: LoRAModelManager, pack_parts: PackParts) -> None:
        """Find the layers that the kernel reads."""
        self._pack_parts = pack_parts
        self._packed: dict[str, PackedLayer] = {
            name: layer
            for name, module in manager.modules.items()
            if (layer := packed_layer(manager, module)) is not None and layer.for_kernel
        }
        self.places = places(manager, {name: len(p.widths) for name, p in self._packed.items()})

    def model(
        self, version_id: int, rank: int, file: AdapterFile, layers: Layers
    ) -> LoRAModel | None:
        """See `FastWay`."""
        packed = {name: (self._packed[name], each) for name, each in layers.items()}
        return LoRAModel(version_id, rank, pack_file(packed, self._pack_parts))


class AdapterReader:
    """Reads adapters for one worker."""

    def __init__(self, worker_manager: Any, fast_way: FastWay | None = None) -> None:
        """Take vLLM's `WorkerLoRAManager`, and the GPU's fast way if it is used."""
        self._of_worker = worker_manager
        self._manager: LoRAModelManager = worker_manager._adapter_manager
        self._fast_way = fast_way or _packed_way(self._manager)

    def read(self, version_id: int, name: str, path: str) -> LoRAModel:
        """Read an adapter. Its files are not needed afterwards.

        Raises:
            ValueError: it cannot be used. The message does not show the path.
        """
        try:
            return self._read_fast(version_id, path) or self._read_as_vllm(version_id, name, path)
        except Exception as error:
            raise ValueError((str(error) or repr(error)).replace(path, name)) from None

    def _read_fast(self, version_id: int, path: str) -> LoRAModel | None:
        """Read by the fast way. Returns None if it does not know a projection of the adapter."""
        model = self._manager.model
        if self._fast_way is None or getattr(model, "lora_skip_prefixes", None):
            return None
        config = PEFTHelper.from_local_dir(path, self._of_worker.max_position_embeddings)
        config.validate_legal(self._of_worker.lora_config)
        scale_of = PeftConfig(json.loads((Path(path) / CONFIG_FILE).read_text())).scale_of
        mapper = getattr(model, "hf_to_vllm_mapper", None)
        mapper = mapper.get_rename_mapper() if mapper is not None else None
        file = AdapterFile(Path(path) / WEIGHTS_FILE)
        layers: Layers = {}
        pairs: dict[str, dict[bool, Matrix]] = {}
        scales: dict[str, float] = {}
        for key, matrix in file.matrices.items():
            projection, is_a = parse_fine_tuned_lora_name(key, mapper)
            if projection not in self._fast_way.places:
                return None
            pairs.setdefault(projection, {})[is_a] = matrix
            in_file = parse_fine_tuned_lora_name(key)[0] if mapper else projection
            scales[projection] = scale_of(in_file)
        for projection, pair in pairs.items():
            if len(pair) != 2:
                raise ValueError(f"{projection} has A or B alone")
            name, index, num_projections = self._fast_way.places[projection]
            projections = layers.setdefault(name, [None] * num_projections)
            projections[index] = Projection(pair[True], pair[False], scales[projection])
        return self._fast_way.model(version_id, config.r, file, layers)

    def _read_as_vllm(self, version_id: int, name: str, path: str) -> LoRAModel:
        adapter = self._of_worker._load_adapter(LoRARequest(name, version_id, path))
        self._manager._create_merged_loras_inplace(adapter)
        pack_adapter(self._manager, adapter)
        return adapter


def places(manager: LoRAModelManager, num_projections: dict[str, int]) -> Places:
    """Find the projections that this worker holds whole.

    `num_projections` gives the layers to look at, and the number of projections each must have.
    """
    found: Places = {}
    for name, number in num_projections.items():
        projections = manager.packed_modules.get(name, [name])
        if manager.modules[name].tp_size == 1 and len(projections) == number:
            found |= {each: (name, index, number) for index, each in enumerate(projections)}
    return found


def _packed_way(manager: LoRAModelManager) -> PackedWay | None:
    wrappers = manager.punica_wrapper_mapping.values()
    kernel = next((getattr(wrapper, "kernel", None) for wrapper in wrappers), None)
    return PackedWay(manager, kernel.pack_parts) if kernel else None
