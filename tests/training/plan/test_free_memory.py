from pathlib import Path

import psutil
import pytest

from tests.training.run.test_train import DATA, recipe
from training.errors import TrainingError
from training.plan import free_memory as module
from training.plan.free_memory import free_memory
from training.run.train import train

MIB = 1 << 20
V2 = ("memory.max", "memory.current", "")
V1 = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/")


def put_group(cgroups: Path, files: tuple[str, str, str], limit: str) -> Path:
    """A container of which 60 MiB are used, 20 of them page cache."""
    limit_file, usage_file, folder = files
    (cgroups / folder).mkdir(exist_ok=True)
    (cgroups / limit_file).write_text(f"{limit}\n")
    (cgroups / usage_file).write_text(f"{60 * MIB}\n")
    total = "total_" if folder else ""
    stat = {"anon": 40 * MIB, "inactive_file": 9, "active_file": 9}
    stat |= {f"{total}inactive_file": 15 * MIB, f"{total}active_file": 5 * MIB}
    lines = "".join(f"{name} {size}\n" for name, size in stat.items())
    (cgroups / folder / "memory.stat").write_text(lines)
    return cgroups


@pytest.mark.parametrize("files", [V2, V1], ids=["v2", "v1"])
def test_a_containers_limit_counts_and_its_page_cache_does_not(
    tmp_path: Path, files: tuple[str, str, str]
) -> None:
    assert free_memory(put_group(tmp_path, files, str(100 * MIB))) == 60 * MIB
    assert free_memory(put_group(tmp_path, files, str(10 * MIB))) == 0


@pytest.mark.parametrize("limit", ["max", str((1 << 63) - 4096)])
def test_without_a_limit_the_machine_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    machine = psutil.virtual_memory()._replace(available=7 * MIB)
    monkeypatch.setattr("psutil.virtual_memory", lambda: machine)
    assert free_memory(tmp_path) == 7 * MIB
    assert free_memory(put_group(tmp_path, V2, limit)) == 7 * MIB
    assert free_memory(put_group(tmp_path, V1, limit)) == 7 * MIB


def test_a_plan_over_the_containers_limit_is_refused(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = put_group(tmp_path, V2, str(42 * MIB))
    monkeypatch.setattr(module.free_memory, "__defaults__", (container,))
    with pytest.raises(TrainingError, match=r"takes \d+ MiB by the plan .* 2 are free"):
        train(tiny_llama, DATA, recipe(), tmp_path / "adapter")
    assert not list(tmp_path.glob("adapter*"))
