"""Reads from Linux's files which processors and how much memory this process may use.

vLLM can say the same, but importing it takes seconds. The engine's process is started before that.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

_ROOT = Path("/")
_KIB = 1024


def allowed_processors(root: Path = _ROOT) -> list[tuple[int, int, int]]:
    """Return the logical processors of this process's affinity, each with its core and NUMA node.

    A core is named by the lowest number of its processors. What the machine doesn't tell is taken
    for a core of its own, on node 0.
    """
    folder = root / "sys/devices/system/cpu"
    return [
        (number, _core_of(folder / f"cpu{number}", number), _node_of(folder / f"cpu{number}"))
        for number in sorted(os.sched_getaffinity(0))
    ]


def processor_quota(root: Path = _ROOT) -> float:
    """Return the processor time that the container may use, in processors, or infinity."""
    quotas = [math.inf]
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, read = root / "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            base, read = root / "sys/fs/cgroup/cpu", _quota_v1
        else:
            continue
        group = base / path.lstrip("/")
        groups = [group, *(each for each in group.parents if each.is_relative_to(base))]
        quotas += map(read, groups)
    return min(quotas)


def memory_of_node(node: int, root: Path = _ROOT) -> float:
    """Return the bytes of memory of a NUMA node within the container's limit, or infinity."""
    limits = [math.inf]
    of_node = _text(root / f"sys/devices/system/node/node{node}/meminfo")
    if found := re.search(r"MemTotal: *(\d+) kB", of_node):
        limits.append(int(found[1]) * _KIB)
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        text = _text(root / "sys/fs/cgroup" / name).strip()
        limits.append(int(text) if text.isdigit() else math.inf)
    return min(limits)


def _core_of(folder: Path, number: int) -> int:
    siblings = _text(folder / "topology/thread_siblings_list").strip()  # 0,8 or 0-1
    return int(siblings.replace("-", ",").split(",")[0]) if siblings else number


def _node_of(folder: Path) -> int:
    nodes = [each.name.removeprefix("node") for each in folder.glob("node[0-9]*")]
    return int(nodes[0]) if nodes else 0


def _quota_v2(group: Path) -> float:
    quota, _, period = _text(group / "cpu.max").strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() else math.inf


def _quota_v1(group: Path) -> float:
    quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota.strip().isdigit() else math.inf


def _text(file: Path) -> str:
    """Return a file's text, or an empty one if this machine has no such file."""
    try:
        return file.read_text()
    except OSError:
        return ""
