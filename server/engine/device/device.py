"""Reads the device that the engine runs on: GPUs, their memory, and the machine around them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil


@dataclass(frozen=True)
class Gpu:
    """One GPU. Its free memory excludes what other processes hold on it."""

    name: str
    total_bytes: int
    free_bytes: int
    generation: int = 0
    """The major number of its CUDA compute capability: 9 is Hopper, 10 and 12 are Blackwell."""


@dataclass(frozen=True)
class Device:
    """The properties of device and machine that the defaults depend on."""

    is_cpu: bool
    gpus: tuple[Gpu, ...]
    """The GPUs that this process may use. Empty on CPU, and for GPUs that aren't NVIDIA's."""
    host_bytes: int
    """Memory that is available on the machine, within the container's limit."""
    step_tokens: int
    """Tokens that vLLM computes in one step of the engine, by its own default for this device."""
    max_seqs: int
    """Requests in one step, by vLLM's own default for this device."""


def is_cpu_build() -> bool:
    """Return True if the installed vLLM computes on CPU. Works before vLLM is imported."""
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError:
        return True


def read_device() -> Device:
    """Read this machine. It imports vLLM, so `prepare_environment` must have been called before."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.cpu_resource_utils import get_cgroup_memory_limit

    step_tokens, max_seqs = EngineArgs.get_batch_defaults(1)
    available = psutil.virtual_memory().available
    return Device(
        is_cpu=current_platform.is_cpu(),
        gpus=_read_gpus(current_platform) if current_platform.is_cuda() else (),
        host_bytes=min(available, get_cgroup_memory_limit() or available),
        step_tokens=step_tokens[UsageContext.OPENAI_API_SERVER],
        max_seqs=max_seqs[UsageContext.OPENAI_API_SERVER],
    )


def _read_gpus(platform: Any) -> tuple[Gpu, ...]:
    from vllm.utils.import_utils import import_pynvml

    nvml = import_pynvml()
    nvml.nvmlInit()
    try:
        return tuple(
            read_gpu(nvml, platform.device_id_to_physical_device_id(index))
            for index in range(platform.device_count())
        )
    finally:
        nvml.nvmlShutdown()


def read_gpu(nvml: Any, physical_index: int) -> Gpu:
    """Read a GPU through NVIDIA's management library. PyTorch would take GPU memory for that."""
    handle = nvml.nvmlDeviceGetHandleByIndex(physical_index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    generation, _ = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(nvml.nvmlDeviceGetName(handle), memory.total, memory.free, generation)
