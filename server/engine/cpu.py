"""Decides on CPU which processors the engine computes on, and how large its KV cache is.

vLLM binds threads in worker processes only. The engine runs the model without one (see
`device/defaults.py`), so its threads are bound here.
"""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from server.engine.device import linux

_GIB = 1 << 30

PROCESSES_BYTES = int(1.5 * _GIB)
"""Memory of the server's and the engine's process without weights, adapters and KV cache."""

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
    """The processor time that the container may use, in whole processors. Without a limit it is the
    number of processors."""
    memory_bytes: int
    """Free memory of the first processor's NUMA node, within the container's limit."""


def read_machine() -> Machine:
    """Read the part of this machine that affinity and container let this process use."""
    processors = tuple(Processor(*each) for each in linux.allowed_processors())
    quota = min(linux.processor_quota(), len(processors))
    # A container's own figure counts the page cache as used, although the system frees that cache
    # when a program needs memory. So the host's figure of available memory is taken.
    available = psutil.virtual_memory().available
    memory = min(linux.memory_of_node(processors[0].node), available)
    return Machine(processors, max(1, int(quota)), int(memory))


def openmp_variables(machine: Machine) -> dict[str, str]:
    """Return OpenMP's environment for the engine's process.

    There is one thread for each core of the first processor's NUMA node, as in vLLM's workers:
    vLLM takes all memory from that node.

    OpenMP doesn't know a container's quota, so the number of threads is bounded by it here. With
    more threads, the system would stop all of them for a part of each period. Under a quota threads
    aren't bound to processors: other containers share the machine, and if each of them bound its
    threads, all would use the same processors.
    """
    node = [cpu for cpu in machine.processors if cpu.node == machine.processors[0].node]
    one_per_core = {cpu.core: cpu.number for cpu in node}
    chosen = sorted(one_per_core.values())
    variables = {"OMP_NUM_THREADS": str(min(len(chosen), machine.quota))}
    if len(chosen) < len(machine.processors) and len(chosen) <= machine.quota:
        variables |= {"OMP_PLACES": f"{{{','.join(map(str, chosen))}}}", "OMP_PROC_BIND": "true"}
    return variables


def kv_cache_bytes(machine: Machine, resident: int) -> int:
    """Return the size of the KV cache: an eighth of the free memory, but 1 to 16 GiB if that fits.

    Free is what weights, adapters (`resident` bytes) and processes leave.

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
    """Return the bytes that weights, adapters and processes leave. They may be negative."""
    return machine.memory_bytes - resident - PROCESSES_BYTES
