"""Decides on CPU which processors the engine computes on, and how large its KV cache is.

vLLM reads the machine: affinity, the container's quota and memory limit, NUMA nodes. It binds
threads in worker processes only. The engine runs the model without one (see `device/defaults.py`),
so its threads are bound here.
"""

from __future__ import annotations

from dataclasses import dataclass

import psutil

_GIB = 1 << 30

PROCESSES_BYTES = int(1.5 * _GIB)
"""What the server's and the engine's process hold besides weights, adapters and KV cache."""

SMALLEST_KV_BYTES = _GIB // 8

LARGEST_KV_BYTES = 16 * _GIB
"""Llama 3.1 8B's whole context of 131,072 tokens."""


class KvCacheDoesNotFit(Exception):
    """Base, adapters and processes leave no room for a KV cache."""


@dataclass(frozen=True)
class Processor:
    """A logical processor, its physical core, and its NUMA node."""

    number: int
    core: int
    node: int


@dataclass(frozen=True)
class Machine:
    """The part of the machine that this process may use."""

    processors: tuple[Processor, ...]
    quota: int
    """How many processors' time the container may use, rounded to whole ones; without a limit, the
    number of processors."""
    memory_bytes: int
    """Free memory of the first processor's NUMA node, within the container's limit."""


def read_machine() -> Machine:
    """Read this machine: what affinity and container let this process use."""
    from vllm.utils.cpu_resource_utils import get_allowed_cpu_list, get_memory_node_info
    from vllm.utils.torch_utils import available_cpu_count

    processors = tuple(
        Processor(cpu.id, cpu.physical_core, cpu.numa_node) for cpu in get_allowed_cpu_list()
    )
    node = get_memory_node_info(processors[0].node)
    # In a container's own figure the page cache counts as used, though it gives way to programs.
    # So the host's figure of available memory is taken.
    memory = min(node.total_memory, psutil.virtual_memory().available)
    return Machine(processors, available_cpu_count(), memory)


def openmp_variables(machine: Machine) -> dict[str, str]:
    """Return OpenMP's environment for the engine's process.

    As in vLLM's workers, there is one thread for each core of the first processor's NUMA node,
    because vLLM takes all memory from that node. OpenMP doesn't know a container's quota, so the
    quota bounds the threads here: with more threads, the system would stop all of them for a part
    of each period. A container with a quota shares the machine with other containers. If all bound
    their threads, they would bind them to the same processors, so here none is bound.
    """
    node = [cpu for cpu in machine.processors if cpu.node == machine.processors[0].node]
    one_per_core = {cpu.core: cpu.number for cpu in node}
    chosen = sorted(one_per_core.values())
    variables = {"OMP_NUM_THREADS": str(min(len(chosen), machine.quota))}
    if len(chosen) < len(machine.processors) and len(chosen) <= machine.quota:
        variables |= {"OMP_PLACES": f"{{{','.join(map(str, chosen))}}}", "OMP_PROC_BIND": "true"}
    return variables


def kv_cache_bytes(machine: Machine, resident: int) -> int:
    """Return an eighth of what weights and adapters leave, but 1 to 16 GiB if that fits.

    Raises:
        KvCacheDoesNotFit: they leave less than `SMALLEST_KV_BYTES`.
    """
    room = room_bytes(machine, resident)
    if room < SMALLEST_KV_BYTES:
        raise KvCacheDoesNotFit(
            f"{machine.memory_bytes / _GIB:.1f} GiB of memory are free, and weights and adapters "
            f"({resident / _GIB:.1f}) and processes ({PROCESSES_BYTES / _GIB:.1f}) leave no room "
            "for a KV cache: choose a machine with more memory, a smaller or 4-bit base, or lower "
            "LORAPLEX_MAX_LORAS"
        )
    return min(room, max(_GIB, min(LARGEST_KV_BYTES, room // 8)))


def room_bytes(machine: Machine, resident: int) -> int:
    """Return what weights, adapters and processes leave of the memory. It may be negative."""
    return machine.memory_bytes - resident - PROCESSES_BYTES
