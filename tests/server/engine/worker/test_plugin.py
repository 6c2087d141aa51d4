"""Which LoRA operators vLLM gets, by platform and setting."""

import ctypes
import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from vllm import (
    platforms,
    sampling_params,  # noqa: F401  # its first import asks the platform, and here that is a stand-in
)

from server.engine.environment import CPU_BASE_KERNELS, CPU_LORA_KERNELS, GPU_LORA_KERNELS
from server.engine.worker import plugin
from server.engine.worker.linear_cpu.dispatch import Products


class Platform:
    """A platform of vLLM's, as far as the plugin asks it."""

    kind = ""

    def is_cpu(self) -> bool:
        return self.kind == "cpu"

    def is_cuda(self) -> bool:
        return self.kind == "cuda"

    @classmethod
    def get_punica_wrapper(cls) -> str:
        return "vLLM's"

    @classmethod
    def register_triton_kernel_overrides(cls) -> None:
        """Override nothing."""


@pytest.mark.parametrize(
    ("kind", "setting", "value", "chosen"),
    [
        ("cpu", CPU_LORA_KERNELS, "grouped", "server.engine.worker.punica.GroupedPunicaWrapper"),
        ("cpu", CPU_LORA_KERNELS, "stock", "vLLM's"),
        ("cpu", GPU_LORA_KERNELS, "stock", "server.engine.worker.punica.GroupedPunicaWrapper"),
        (
            "cuda",
            GPU_LORA_KERNELS,
            "fused",
            "server.engine.worker.lora_gpu.punica.FusedPunicaWrapper",
        ),
        ("cuda", GPU_LORA_KERNELS, "stock", "vLLM's"),
        ("rocm", GPU_LORA_KERNELS, "fused", "vLLM's"),
    ],
)
def test_operators(
    monkeypatch: pytest.MonkeyPatch, kind: str, setting: str, value: str, chosen: str
) -> None:
    platform = type("Kind", (Platform,), {"kind": kind})()
    monkeypatch.setattr(platforms, "_current_platform", platform)
    for each in (CPU_LORA_KERNELS, GPU_LORA_KERNELS):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(CPU_BASE_KERNELS, "stock")
    monkeypatch.setenv(setting, value)
    plugin.register()
    assert platform.get_punica_wrapper() == chosen


@pytest.mark.parametrize(
    ("kind", "kernels", "is_replaced"),
    [
        ("cpu", None, True),
        ("cpu", "auto", True),
        ("cpu", "compiled", True),
        ("cpu", "stock", False),
        ("cuda", "compiled", False),
    ],
)
def test_products(
    monkeypatch: pytest.MonkeyPatch, kind: str, kernels: str | None, is_replaced: bool
) -> None:
    from vllm.model_executor.layers import utils

    platform = type("Kind", (Platform,), {"kind": kind})()
    monkeypatch.setattr(platforms, "_current_platform", platform)
    monkeypatch.setattr(utils, "dispatch_cpu_unquantized_gemm", print)
    monkeypatch.delenv(CPU_BASE_KERNELS, raising=False)
    if kernels:
        monkeypatch.setenv(CPU_BASE_KERNELS, kernels)
    plugin.register()
    assert isinstance(utils.dispatch_cpu_unquantized_gemm, Products) == is_replaced


ARCH_PRCTL, GET_PERMISSIONS, TILE_DATA = 158, 0x1022, 18
"""Of Linux on x86-64: a system call, a request to it, and the bit that stands for AMX."""
HAS_AMX = "amx_bf16" in Path("/proc/cpuinfo").read_text().split()


def may_use_amx() -> bool:
    permissions = ctypes.c_uint64()
    ctypes.CDLL(None).syscall(ARCH_PRCTL, GET_PERMISSIONS, ctypes.byref(permissions))
    return bool(permissions.value >> TILE_DATA & 1)


def asked(channel: Connection) -> None:
    before = may_use_amx()
    plugin.register()
    channel.send((before, may_use_amx()))


@pytest.mark.skipif(not HAS_AMX, reason="this processor has no AMX")
def test_linux_is_asked_for_amx() -> None:
    """A process of its own: what it may do, it may do until it ends."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=asked, args=(theirs,))
    process.start()
    assert ours.recv() == (False, True)
    process.join()
