"""Reads an adapter's files into host memory, in any thread, while the engine runs."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable
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
    PackPlan,
    Projection,
)
from server.engine.worker.lora_cpu.packing import PackedLayer
from server.engine.worker.slots import pack_adapter, packed_layer

Places = dict[str, tuple[str, int, int]]
"""The place of each projection: its layer's name, its index there, and their number there."""

Layers = dict[str, list[Projection | None]]
"""The projections of each layer that an adapter changes."""


Plan = Callable[[int, int, AdapterFile], LoRAModel]
"""Given a version, its rank and its file in memory, makes the adapter.

It may raise ValueError: the numbers can't be used.
"""

MAX_PLANS = 64


class FastWay(Protocol):
    """Makes adapters from files in memory, and makes no tensors of their matrices."""

    places: Places

    def plan(self, file: AdapterFile, layers: Layers) -> Plan | None:
        """Return how to make an adapter from each file with the same matrices and scales.

        Returns None if only vLLM's way can load them. The plan doesn't keep the file.

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

    def plan(self, file: AdapterFile, layers: Layers) -> Plan | None:
        """See `FastWay`."""
        plan = PackPlan({name: (self._packed[name], each) for name, each in layers.items()})

        def model(version_id: int, rank: int, file: AdapterFile) -> LoRAModel:
            return LoRAModel(version_id, rank, plan.pack(file, self._pack_parts))

        return model


class AdapterReader:
    """Reads adapters for one worker."""

    def __init__(self, worker_manager: Any, fast_way: FastWay | None = None) -> None:
        """Take vLLM's `WorkerLoRAManager`, and the GPU's fast way if it is used."""
        self._of_worker = worker_manager
        self._manager: LoRAModelManager = worker_manager._adapter_manager
        self._fast_way = fast_way or _packed_way(self._manager)
        self._plans: OrderedDict[object, Plan] = OrderedDict()
        """By all that a plan depends on, the latest used last."""

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
        helper = PEFTHelper.from_local_dir(path, self._of_worker.max_position_embeddings)
        helper.validate_legal(self._of_worker.lora_config)
        config = PeftConfig(json.loads((Path(path) / CONFIG_FILE).read_text()))
        file = AdapterFile(Path(path) / WEIGHTS_FILE)
        # Digests, because tenants write headers and patterns, of any length.
        key = file.shape, hashlib.sha256(config.scaling.encode()).digest()
        plan = self._plans.pop(key, None) or self._plan(self._fast_way, file, config)
        if plan is None:
            return None
        self._plans[key] = plan
        if len(self._plans) > MAX_PLANS:
            self._plans.popitem(last=False)
        return plan(version_id, helper.r, file)

    def _plan(self, fast_way: FastWay, file: AdapterFile, config: PeftConfig) -> Plan | None:
        mapper = getattr(self._manager.model, "hf_to_vllm_mapper", None)
        mapper = mapper.get_rename_mapper() if mapper is not None else None
        layers: Layers = {}
        pairs: dict[str, dict[bool, Matrix]] = {}
        scales: dict[str, float] = {}
        for key, matrix in file.matrices.items():
            projection, is_a = parse_fine_tuned_lora_name(key, mapper)
            if projection not in fast_way.places:
                return None
            pairs.setdefault(projection, {})[is_a] = matrix
            in_file = parse_fine_tuned_lora_name(key)[0] if mapper else projection
            scales[projection] = config.scale_of(in_file)
        for projection, pair in pairs.items():
            if len(pair) != 2:
                raise ValueError(f"{projection} has A or B alone")
            name, index, num_projections = fast_way.places[projection]
            projections = layers.setdefault(name, [None] * num_projections)
            projections[index] = Projection(pair[True], pair[False], scales[projection])
        return fast_way.plan(file, layers)

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
