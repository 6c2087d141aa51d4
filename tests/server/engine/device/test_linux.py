"""What Linux's files say of processors and memory, on machines that are not this one."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from server.engine.device.linux import allowed_processors, memory_of_node, processor_quota

GIB = 1 << 30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_siblings_are_one_core_and_nodes_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes of one core each, with two threads a core; processor 3 is not ours."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2})
    cpu = "sys/devices/system/cpu"
    write(
        tmp_path,
        {
            f"{cpu}/cpu0/topology/thread_siblings_list": "0,2\n",
            f"{cpu}/cpu1/topology/thread_siblings_list": "1,3\n",
            f"{cpu}/cpu2/topology/thread_siblings_list": "0,2\n",
            f"{cpu}/cpu0/node0/cpumap": "",
            f"{cpu}/cpu1/node1/cpumap": "",
            f"{cpu}/cpu2/node0/cpumap": "",
        },
    )
    assert allowed_processors(tmp_path) == [(0, 0, 0), (1, 1, 1), (2, 0, 0)]


def test_a_machine_that_tells_nothing_has_cores_of_one_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {4, 5})
    assert allowed_processors(tmp_path) == [(4, 4, 0), (5, 5, 0)]
    assert processor_quota(tmp_path) == math.inf
    assert memory_of_node(0, tmp_path) == math.inf


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, math.inf),
        (
            {
                "proc/self/cgroup": "0::/pod/container\n",
                "sys/fs/cgroup/pod/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/pod/container/cpu.max": "400000 100000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/other\n2:cpu,cpuacct:/docker\n0::/\n",
                "sys/fs/cgroup/cpu/docker/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu/docker/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
    ],
    ids=["version 2", "no limit", "the pod has less", "version 1"],
)
def test_the_tightest_quota_of_the_containers_groups_holds(
    tmp_path: Path, files: dict[str, str], quota: float
) -> None:
    assert processor_quota(write(tmp_path, files)) == quota


def test_memory_is_the_nodes_within_the_containers_limit(tmp_path: Path) -> None:
    node = "sys/devices/system/node/node1/meminfo"
    write(tmp_path, {node: f"Node 1 MemTotal:  {8 * GIB // 1024} kB\nNode 1 MemFree: 5 kB\n"})
    assert memory_of_node(1, tmp_path) == 8 * GIB
    write(tmp_path, {"sys/fs/cgroup/memory.max": f"{2 * GIB}\n"})
    assert memory_of_node(1, tmp_path) == 2 * GIB
    write(tmp_path, {"sys/fs/cgroup/memory.max": "max\n"})
    assert memory_of_node(1, tmp_path) == 8 * GIB
