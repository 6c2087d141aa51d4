import os
from pathlib import Path

import pytest

from server.engine import cpu
from server.engine.cpu import KvCacheDoesNotFit, Machine, Processor, openmp_variables
from server.engine.device.linux import memory_of_node
from server.engine.environment import prepare_environment, threads

GIB = 1 << 30


def machine(
    num_cores: int, *, threads: int = 1, nodes: int = 1, quota: int | None = None, gib: float = 64
) -> Machine:
    """Siblings are numbered as Linux does it: first one of each core, then the others."""
    processors = tuple(
        Processor(thread * num_cores + core, core, core * nodes // num_cores)
        for thread in range(threads)
        for core in range(num_cores)
    )
    return Machine(processors, quota or len(processors), int(gib * GIB))


@pytest.mark.parametrize(
    ("given", "num_threads", "places"),
    [
        (machine(1), 1, None),
        (machine(2), 2, None),
        (machine(8, threads=2), 8, range(8, 16)),
        (machine(16, nodes=2), 8, range(8)),
        (machine(16, nodes=2, threads=2), 8, range(16, 24)),
        (machine(64, quota=2), 2, None),
        (machine(64, threads=2, nodes=2, quota=4), 4, None),
        (machine(8, threads=2, quota=8), 8, range(8, 16)),
    ],
    ids=["1", "2", "8 SMT", "2x8", "2x8 SMT", "quota 2", "quota 4 of 2x32 SMT", "quota 8 of 8 SMT"],
)
def test_a_thread_for_each_core_of_a_node(
    given: Machine, num_threads: int, places: range | None
) -> None:
    variables = openmp_variables(given)
    assert variables["OMP_NUM_THREADS"] == str(num_threads)
    assert variables.get("OMP_PLACES") == (
        None if places is None else f"{{{','.join(map(str, places))}}}"
    )
    assert ("OMP_PROC_BIND" in variables) == (places is not None)


def test_processors_taken_away_by_affinity_are_left_alone() -> None:
    """As under `taskset -c 6-9` on two nodes of eight cores."""
    processors = machine(16, nodes=2).processors[6:10]
    variables = openmp_variables(Machine(processors, 4, GIB))
    assert (variables["OMP_NUM_THREADS"], variables["OMP_PLACES"]) == ("2", "{6,7}")


@pytest.mark.parametrize(
    ("gib", "resident_gib", "expected_gib"),
    [(64, 0.5, 7.75), (400, 15, 16), (10, 0.5, 1), (4, 2, 0.5), (18, 16, 0.5)],
)
def test_kv_cache_is_an_eighth_of_what_is_left(
    gib: float, resident_gib: float, expected_gib: float
) -> None:
    found = cpu.kv_cache_bytes(machine(2, gib=gib), int(resident_gib * GIB))
    assert found == pytest.approx(expected_gib * GIB)


def test_too_little_memory_is_said_with_what_takes_it() -> None:
    with pytest.raises(KvCacheDoesNotFit, match=r"8\.0 GiB .* are free, .*\(15\.0\).* 4-bit base"):
        cpu.kv_cache_bytes(machine(2, gib=8), 15 * GIB)


def test_this_machine_can_be_read() -> None:
    found = cpu.read_machine()
    assert {processor.number for processor in found.processors} == os.sched_getaffinity(0)
    assert 1 <= found.quota <= len(found.processors)
    assert found.memory_bytes > 0


def test_this_machine_is_as_vllm_reads_it() -> None:
    from vllm.utils.cpu_resource_utils import get_allowed_cpu_list, get_memory_node_info
    from vllm.utils.torch_utils import available_cpu_count

    ours, of_vllm = cpu.read_machine(), get_allowed_cpu_list()
    assert [(p.number, p.node) for p in ours.processors] == [(p.id, p.numa_node) for p in of_vllm]
    assert len({p.core for p in ours.processors}) == len({p.physical_core for p in of_vllm})
    assert ours.quota == available_cpu_count()
    assert memory_of_node(ours.processors[0].node) == get_memory_node_info().total_memory


def test_child_processes_alone_see_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with threads({"OMP_NUM_THREADS": "3"}):
        assert os.environ["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.parametrize("name", ["OMP_PLACES", "VLLM_CPU_OMP_THREADS_BIND"])
def test_who_sets_one_variable_decides_about_all(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv(name, "0-3")
    with threads({"OMP_NUM_THREADS": "3", "OMP_PLACES": "{0,1,2}"}):
        assert "OMP_NUM_THREADS" not in os.environ
        assert os.environ[name] == "0-3"
    assert os.environ[name] == "0-3"


def prepared(monkeypatch: pytest.MonkeyPatch, **given: str) -> dict[str, str]:
    monkeypatch.setattr(os, "environ", dict(given))
    prepare_environment("org/model", "info", "grouped", Path("data"))
    return dict(os.environ)


def test_vllms_own_binding_gets_the_worker_process_that_obeys_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert prepared(monkeypatch)["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    bound = prepared(monkeypatch, VLLM_CPU_OMP_THREADS_BIND="0-3")
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in bound


def test_what_the_operator_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert prepared(monkeypatch)["TORCH_COMPILE_DISABLE"] == "1"
    found = prepared(monkeypatch, TORCH_COMPILE_DISABLE="0")
    assert found["TORCH_COMPILE_DISABLE"] == "0"


def test_on_a_gpu_compiled_models_are_kept_in_the_data_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.engine.environment.is_cpu_build", lambda: False)
    found = prepared(monkeypatch, PATH="/nowhere")
    assert found["VLLM_CACHE_ROOT"] == str(Path("data").absolute() / "cache" / "vllm")
    assert "TORCH_COMPILE_DISABLE" not in found
    assert prepared(monkeypatch, XDG_CACHE_HOME="/c")["VLLM_CACHE_ROOT"] == "/c/vllm"
