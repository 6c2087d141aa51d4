"""On CPU: which processors the engine computes on, and how much memory its KV cache takes.

vLLM reads the machine for us: affinity, quota and memory limit of the container, NUMA nodes. It
binds threads in worker processes only, and we run the model without one (see `environment`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from adapters_registry.check.base import BaseSpec

_GIB = 1 << 30

PROCESSES_BYTES = int(1.5 * _GIB)
"""What the server's process and the engine's hold besides weights, adapters and KV cache."""

SMALLEST_KV_BYTES = _GIB // 8

LARGEST_KV_BYTES = 16 * _GIB
"""Llama 3.1 8B's whole context of 131,072 tokens."""


class TooLittleMemory(Exception):
    """Base, adapter slots and processes leave no room for a KV cache."""


@dataclass(frozen=True)
class Processor:
    """A logical processor, the physical core that it is part of, and its NUMA node."""

    number: int
    core: int
    node: int


@dataclass(frozen=True)
class Machine:
    """What this process may use of the machine."""

    processors: tuple[Processor, ...]
    quota: int
    """Whole processors' worth of time: the container's limit, or as many as there are."""
    memory_bytes: int
    """Free on the first processor's NUMA node, within the container's limit."""


def read_machine() -> Machine:
    """This machine, as far as affinity and container let this process use it."""
    from vllm.utils.cpu_resource_utils import get_allowed_cpu_list, get_memory_node_info
    from vllm.utils.torch_utils import available_cpu_count

    processors = tuple(
        Processor(cpu.id, cpu.physical_core, cpu.numa_node) for cpu in get_allowed_cpu_list()
    )
    node = get_memory_node_info(processors[0].node)
    # A container's page cache counts as used there, though it gives way: hence the host's view.
    memory = min(node.total_memory, psutil.virtual_memory().available)
    return Machine(processors, available_cpu_count(), memory)


def openmp_variables(machine: Machine) -> dict[str, str]:
    """OpenMP's environment for the engine's process.

    As vLLM does for its workers: one thread for each core of one NUMA node, the first processor's,
    because vLLM takes all memory from there. A quota, of which OpenMP knows nothing, bounds the
    threads: those beyond it would have all of them stopped for a part of each period. Whoever has a
    quota shares the machine with others who would bind to the same processors: it binds to none.
    """
    node = [cpu for cpu in machine.processors if cpu.node == machine.processors[0].node]
    one_per_core = {cpu.core: cpu.number for cpu in node}
    chosen = sorted(one_per_core.values())
    variables = {"OMP_NUM_THREADS": str(min(len(chosen), machine.quota))}
    if len(chosen) < len(machine.processors) and len(chosen) <= machine.quota:
        variables |= {"OMP_PLACES": f"{{{','.join(map(str, chosen))}}}", "OMP_PROC_BIND": "true"}
    return variables


def resident_bytes(base: Path, num_slots: int, max_rank: int) -> int:
    """What the weights of a base directory take, and the adapter slots, which hold two bytes each.

    Nothing is known of a base that is yet to be downloaded: 0.
    """
    if not base.is_dir():
        return 0
    weights = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    modules = BaseSpec.from_directory(base, max_rank).modules.values()
    features = sum(shape.in_features + shape.out_features for shape in modules)
    return weights + num_slots * max_rank * features * 2


def kv_cache_bytes(machine: Machine, resident: int) -> int:
    """An eighth of what weights and adapter slots leave, 1 to 16 GiB where it fits.

    Raises:
        TooLittleMemory: they leave next to nothing.
    """
    room = room_bytes(machine, resident)
    if room < SMALLEST_KV_BYTES:
        raise TooLittleMemory(
            f"{machine.memory_bytes / _GIB:.1f} GiB of memory are free, and weights and adapter "
            f"slots ({resident / _GIB:.1f}) and processes ({PROCESSES_BYTES / _GIB:.1f}) "
            "leave no room for a KV cache: give it more memory, or a smaller or 4-bit base"
        )
    return min(room, max(_GIB, min(LARGEST_KV_BYTES, room // 8)))


def room_bytes(machine: Machine, resident: int) -> int:
    """What weights, adapter slots and processes leave of the memory; may be negative."""
    return machine.memory_bytes - resident - PROCESSES_BYTES
