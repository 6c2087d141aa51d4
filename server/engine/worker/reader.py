"""From an adapter's files to weights in host memory, in any thread, while the engine runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest
from vllm.lora.utils import parse_fine_tuned_lora_name

from server.engine.worker.lora_cpu.files import (
    AdapterFile,
    Matrix,
    PackParts,
    Projection,
    pack_file,
)
from server.engine.worker.lora_cpu.packing import PackedLayer
from server.engine.worker.slots import pack_adapter, packed_layer

Places = dict[str, tuple[str, int, PackedLayer]]
"""Where a projection is: its layer's name, its index in it, and the layer."""


class AdapterReader:
    """Reads adapters for one worker."""

    def __init__(self, worker_manager: Any) -> None:
        """Take vLLM's `WorkerLoRAManager`."""
        self._of_worker = worker_manager
        self._manager: LoRAModelManager = worker_manager._adapter_manager
        wrappers = self._manager.punica_wrapper_mapping.values()
        kernel = next((getattr(wrapper, "kernel", None) for wrapper in wrappers), None)
        self._pack_parts: PackParts | None = kernel.pack_parts if kernel else None
        self._places = _places(self._manager)

    def read(self, version_id: int, name: str, path: str) -> LoRAModel:
        """Read an adapter; its files aren't needed afterwards.

        Raises:
            ValueError: it can't be used; the message doesn't show the path.
        """
        try:
            return self._read_packed(version_id, path) or self._read_as_vllm(version_id, name, path)
        except Exception as error:
            raise ValueError((str(error) or repr(error)).replace(path, name)) from None

    def _read_packed(self, version_id: int, path: str) -> LoRAModel | None:
        """The fast way, for our kernel; None where it doesn't know a projection of the adapter."""
        model = self._manager.model
        if self._pack_parts is None or getattr(model, "lora_skip_prefixes", None):
            return None
        config = PEFTHelper.from_local_dir(path, self._of_worker.max_position_embeddings)
        config.validate_legal(self._of_worker.lora_config)
        mapper = getattr(model, "hf_to_vllm_mapper", None)
        mapper = mapper.get_rename_mapper() if mapper is not None else None
        file = AdapterFile(Path(path) / "adapter_model.safetensors")
        layers: dict[str, tuple[PackedLayer, list[Projection | None]]] = {}
        pairs: dict[str, dict[bool, Matrix]] = {}
        scales: dict[str, float] = {}
        for key, matrix in file.matrices.items():
            projection, is_a = parse_fine_tuned_lora_name(key, mapper)
            if projection not in self._places:
                return None
            pairs.setdefault(projection, {})[is_a] = matrix
            in_file = parse_fine_tuned_lora_name(key)[0] if mapper else projection
            scales[projection] = config.get_rank_and_scaling(in_file)[1]
        for projection, pair in pairs.items():
            if len(pair) != 2:
                raise ValueError(f"{projection} has A or B alone")
            name, index, layer = self._places[projection]
            _, projections = layers.setdefault(name, (layer, [None] * len(layer.widths)))
            projections[index] = Projection(pair[True], pair[False], scales[projection])
        return LoRAModel(version_id, config.r, pack_file(layers, self._pack_parts))

    def _read_as_vllm(self, version_id: int, name: str, path: str) -> LoRAModel:
        adapter = self._of_worker._load_adapter(LoRARequest(name, version_id, path))
        self._manager._create_merged_loras_inplace(adapter)
        pack_adapter(self._manager, adapter)
        return adapter


def _places(manager: LoRAModelManager) -> Places:
    """The projections that are in one piece in this worker and that our kernel reads."""
    places: Places = {}
    for name, module in manager.modules.items():
        layer = packed_layer(manager, module)
        projections = manager.packed_modules.get(name, [name])
        if layer is None or not layer.for_kernel or module.tp_size > 1:
            continue
        if len(projections) == len(layer.widths):
            places |= {each: (name, index, layer) for index, each in enumerate(projections)}
    return places
