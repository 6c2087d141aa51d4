from types import SimpleNamespace
from typing import Any

import psutil

from server.engine.device.device import Gpu, is_cpu_build, read_device, read_gpu


class Nvml:
    """NVIDIA's management library, as far as it is asked."""

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:
        return f"GPU {handle}"

    def nvmlDeviceGetCudaComputeCapability(self, _handle: int) -> list[int]:
        return [9, 0]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(total=100, free=40, used=60)


def test_a_gpu_is_read_by_its_number() -> None:
    assert read_gpu(Nvml(), 3) == Gpu("GPU 3", 100, 40, 9)


def test_this_machine_can_be_read() -> None:
    device = read_device()
    assert device.is_cpu == is_cpu_build()
    assert 0 < device.host_bytes <= psutil.virtual_memory().total
    assert device.step_tokens > 0
    assert device.max_seqs > 0
