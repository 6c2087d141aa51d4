"""Descriptions of devices, so that defaults for any of them are tested on any machine."""

from server.engine.device.device import Device, Gpu

GIB = 1 << 30


def gpu(name: str, gib: float, *, free_gib: float | None = None, count: int = 1) -> Device:
    """Describe a machine with 256 GiB of memory and these GPUs, and what vLLM 0.32 does there."""
    one = Gpu(name, int(gib * GIB), int((free_gib or gib - 0.5) * GIB))
    is_large = gib >= 70
    return Device(
        is_cpu=False,
        gpus=(one,) * count,
        host_bytes=256 * GIB,
        step_tokens=8192 if is_large else 2048,
        max_seqs=1024 if is_large else 256,
    )


def cpu(gib: float) -> Device:
    """Describe a machine without a GPU."""
    return Device(True, (), int(gib * GIB), step_tokens=2048, max_seqs=128)


H200 = gpu("NVIDIA H200", 140.4)
H100 = gpu("NVIDIA H100 80GB HBM3", 79.6)
L40 = gpu("NVIDIA L40", 44.5)
A10 = gpu("NVIDIA A10", 22.5)
CPU = cpu(24)
