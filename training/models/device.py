"""Chooses the device on which models are loaded, trained and evaluated."""

from __future__ import annotations

import torch

MIB = 1 << 20


def chosen_device() -> torch.device:
    """Return the first visible GPU, otherwise the CPU.

    Only one GPU is used, even if there are more. Set CUDA_VISIBLE_DEVICES to choose another.
    """
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def device_name(device: torch.device) -> str:
    """Return a GPU's name from its driver, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def reset_gpu_peak(device: torch.device) -> None:
    """Start a new measurement of a GPU's peak memory. Does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def gpu_peak_mib(device: torch.device) -> tuple[int, int]:
    """Return the peaks of tensors and of memory reserved by PyTorch, in MiB. 0 on a CPU."""
    if device.type != "cuda":
        return 0, 0
    allocated = torch.cuda.max_memory_allocated(device)
    return allocated // MIB, torch.cuda.max_memory_reserved(device) // MIB
