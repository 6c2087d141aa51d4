"""Finds out how much memory a training run may take, within the container's limit."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from training.models.device import chosen_device

CGROUPS = Path("/sys/fs/cgroup")
"""Where a container finds its own control group, of version 2 or version 1."""


def free_memory(cgroups: Path = CGROUPS) -> int:
    """Return the free bytes of the device that a model would be loaded on.

    On a CPU this is the machine's free memory, or what the container may still use if that is less.
    """
    device = chosen_device()
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    machine: int = psutil.virtual_memory().available
    groups = (
        (cgroups, "memory.max", "memory.current"),
        (cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    )
    rooms = [_room(*group) for group in groups]
    return min([machine, *(room for room in rooms if room is not None)])


def _room(group: Path, limit_file: str, usage_file: str) -> int | None:
    """Return the bytes that a control group leaves, or None if it doesn't exist or has no limit.

    The kernel counts the page cache as used, but gives it back when a process needs memory.
    """
    try:
        limit = int((group / limit_file).read_text())
        usage = int((group / usage_file).read_text())
        lines = [line.split() for line in (group / "memory.stat").read_text().splitlines()]
    except (OSError, ValueError):  # the limit may be the word "max"
        return None
    pages = {name.removeprefix("total_"): int(size) for name, size in lines}
    cache = pages.get("inactive_file", 0) + pages.get("active_file", 0)
    return max(0, limit - usage + cache)
