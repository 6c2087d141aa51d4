"""The one place that decides which device models are loaded on, trained on and evaluated on."""

from __future__ import annotations

import torch

MIB = 1 << 20


def chosen_device() -> torch.device:
    """Return the first GPU that is visible, otherwise the CPU.

    One GPU is used, also where there are more: set CUDA_VISIBLE_DEVICES to choose another.
    """
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def device_name(device: torch.device) -> str:
    """Return a GPU's name as its driver says it, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def reset_gpu_peak(device: torch.device) -> None:
    """Begin to measure the peak of a GPU's memory anew; does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def gpu_peak_mib(device: torch.device) -> tuple[int, int]:
    """Return the peak of tensors, and of what PyTorch reserved for them, in MiB; 0 on a CPU."""
    if device.type != "cuda":
        return 0, 0
    allocated = torch.cuda.max_memory_allocated(device)
    return allocated // MIB, torch.cuda.max_memory_reserved(device) // MIB
