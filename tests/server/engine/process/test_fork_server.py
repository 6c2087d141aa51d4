"""The engine's process comes from a fork server that has its imports, with our environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.engine.cpu import openmp_variables, read_machine
from server.engine.environment import preloading, threads
from server.engine.process import fork_server
from server.engine.process.fork_server import EngineForkServer, is_one_process, start_fork_server

PROGRAM = """
import json, os, sys
from server.engine.process import fork_server

def child(queue):
    imported = "tests.server.engine.process.imported" in sys.modules
    import setproctitle
    setproctitle.setproctitle("VLLM::EngineCore")  # operators look for it, and so do tests
    title = open("/proc/self/cmdline").read().strip("\\0")
    threads = os.environ.get("OMP_NUM_THREADS")
    queue.put([imported, os.environ.get("LATER"), threads, os.getppid(), title])

if __name__ == "__main__":
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    fork_server._IMPORTS = "tests.server.engine.process.imported"
    server = fork_server.start_fork_server([])
    os.environ["LATER"] = "yes"
    context = fork_server._Context()
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    found = queue.get(timeout=60)
    process.join()
    print(json.dumps([*found, os.getpid(), process.exitcode, "OMP_NUM_THREADS" in os.environ]))
"""


def test_a_process_has_the_imports_and_the_environment_of_this_moment(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    for name in ("OMP_NUM_THREADS", "OMP_PLACES", "OMP_PROC_BIND"):
        environment.pop(name, None)
    ran = subprocess.run(
        [sys.executable, str(program)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    imported, later, threads, parent, title, own, exit_code, leaked = json.loads(ran.stdout)
    assert imported, "it imported nothing before it was asked for"
    assert (later, threads) == ("yes", None), "its environment is not this process's of now"
    assert parent != own, "it was not forked from the fork server"
    assert title == "VLLM::EngineCore"
    assert exit_code == 0
    assert not leaked


def config(**parallel: Any) -> Any:
    alone = {"distributed_executor_backend": "uni", "data_parallel_size": 1, "numa_bind": False}
    return SimpleNamespace(parallel_config=SimpleNamespace(**(alone | parallel)))


def test_vllm_takes_the_fork_server_for_one_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_server, "ensure_running", lambda: None)
    for name in ("OMP_NUM_THREADS", "OMP_PLACES", "OMP_PROC_BIND", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    from vllm.v1.engine import utils

    of_vllm, server = utils.get_mp_context, EngineForkServer()
    with threads(openmp_variables(read_machine())), preloading():
        with server.used_for(config()):
            assert isinstance(utils.get_mp_context(), fork_server._Context)
        assert utils.get_mp_context is of_vllm
        for parallel in (
            {"distributed_executor_backend": "mp"},
            {"data_parallel_size": 2},
            {"numa_bind": True},
        ):
            assert not is_one_process(config(**parallel))
            with server.used_for(config(**parallel)):
                assert utils.get_mp_context is of_vllm
        monkeypatch.setenv("LD_PRELOAD", "libtcmalloc.so:libgomp.so.1")
        with server.used_for(config()):
            assert utils.get_mp_context is of_vllm, "it has loaded another allocator"


@pytest.mark.parametrize(
    ("variable", "arguments"),
    [
        (None, []),
        ("1", []),
        ("0", ["--tensor-parallel-size", "2"]),
        ("0", ["--data-parallel-size=2"]),
        ("0", ["--numa-bind"]),
    ],
)
def test_an_engine_of_several_processes_gets_none(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, arguments: list[str]
) -> None:
    monkeypatch.setattr(fork_server, "ensure_running", lambda: pytest.fail("it was started"))
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
    if variable is not None:
        monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", variable)
    assert start_fork_server(arguments) is None
