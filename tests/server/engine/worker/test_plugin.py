"""Which LoRA operators vLLM gets, by platform and setting."""

import pytest
from vllm import platforms

from server.engine.environment import CPU_LORA_KERNELS, GPU_LORA_KERNELS
from server.engine.worker import plugin


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
    monkeypatch.setenv(setting, value)
    plugin.register()
    assert platform.get_punica_wrapper() == chosen
