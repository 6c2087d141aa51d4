"""Where models go, with a fake of PyTorch's CUDA: nothing here runs on a GPU."""

from pathlib import Path

import pytest
import torch

from training.models import base_model, device
from training.models.device import chosen_device, device_name, gpu_peak_mib, reset_gpu_peak
from training.plan.free_memory import free_memory

MIB = 1 << 20


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Two GPUs are visible; the devices that are asked to measure anew are noted."""
    measured: list[torch.device] = []
    fakes = {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "get_device_name": lambda device: f"GPU {device.index}",
        "reset_peak_memory_stats": measured.append,
        "max_memory_allocated": lambda device: (17_539 + device.index) * MIB,
        "max_memory_reserved": lambda device: (18_000 + device.index) * MIB,
        "mem_get_info": lambda device: (5 * MIB, 9 * MIB),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return measured


def test_the_first_gpu_is_taken_where_there_are_several(two_gpus: list[torch.device]) -> None:
    first = torch.device("cuda", 0)
    assert chosen_device() == first
    assert device_name(first) == "GPU 0"
    reset_gpu_peak(chosen_device())
    assert two_gpus == [first]
    assert gpu_peak_mib(first) == (17_539, 18_000)
    assert free_memory() == 5 * MIB


def test_without_a_gpu_everything_is_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cpu = chosen_device()
    assert cpu == torch.device("cpu")
    assert device_name(cpu) == "cpu"
    reset_gpu_peak(cpu)
    assert gpu_peak_mib(cpu) == (0, 0)
    assert device.MIB == MIB


def test_every_model_is_loaded_onto_the_chosen_device(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_model, "chosen_device", lambda: torch.device("meta"))
    model = base_model.load_model(tiny_llama)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
