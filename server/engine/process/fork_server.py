"""Starts the engine's process on CPU from a fork server, which has imported its libraries before.

vLLM would start a fresh process as soon as this one has imported vLLM and read the configuration,
and that process would import everything again. The fork server imports at the same time as this
process, on another core. A restarted engine has no imports at all.

The fork server only imports: no thread computes in it, so each process that is forked from it is
as a fresh one.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.forkserver import ensure_running
from typing import TYPE_CHECKING

from server.engine import cpu, environment
from server.engine.running.children import kill_child_processes

if TYPE_CHECKING:
    from vllm.config import VllmConfig

log = logging.getLogger(__name__)

_IMPORTS = "server.engine.process.imports"
_SEVERAL_PROCESSES = ("parallel", "-tp", "-pp", "-dp", "numa", "nnodes", "executor")
"""Parts of engine arguments with which the engine may have several processes."""


class EngineProcess(ForkServerProcess):
    """A process that gets this one's environment, as if it had been started from scratch.

    By itself it would have the environment that the fork server was started with.
    """

    def start(self) -> None:
        """Start it, with the environment of now."""
        self._environment = environment.snapshot()
        super().start()

    def run(self) -> None:
        """Run the target."""
        environment.replace(self._environment)
        gc.enable()  # the fork server had no use for it
        super().run()


class _Context(ForkServerContext):
    Process = EngineProcess


class EngineForkServer:
    """The fork server of one `loraplex serve`, which begins to import when it is made.

    `prepare_environment` must have been called before. Its socket stands in the `socket_folder`.
    """

    def __init__(self) -> None:
        multiprocessing.set_forkserver_preload([_IMPORTS])
        threads = cpu.openmp_variables(cpu.read_machine())
        with environment.threads(threads), environment.preloading():
            self._loaded_with = environment.read_by_the_loader()
            ensure_running()

    def close(self) -> None:
        """End it with all processes that came from it. It might import for some more seconds."""
        kill_child_processes()

    @contextmanager
    def used_for(self, config: VllmConfig) -> Iterator[None]:
        """Have vLLM start its process from the fork server within this context.

        An engine of several processes is left to vLLM, which binds each to a part of the machine.
        So is one with other threads or libraries than the fork server has loaded.
        """
        from vllm.v1.engine import utils

        if not is_one_process(config) or environment.read_by_the_loader() != self._loaded_with:
            log.debug("the engine's process imports its libraries itself")
            yield
            return
        of_vllm = utils.get_mp_context
        utils.get_mp_context = _Context
        try:
            yield
        finally:
            utils.get_mp_context = of_vllm


def is_one_process(config: VllmConfig) -> bool:
    """Return whether the engine runs in one process, without workers and replicas."""
    parallel = config.parallel_config
    return (
        parallel.distributed_executor_backend == "uni"
        and parallel.data_parallel_size == 1
        and not parallel.numa_bind
    )


def start_fork_server(engine_args: Sequence[str]) -> EngineForkServer | None:
    """Start a fork server if the engine will run in one process on CPU. Otherwise return None."""
    if not environment.runs_in_one_process() or any(
        part in argument for argument in engine_args for part in _SEVERAL_PROCESSES
    ):
        return None
    return EngineForkServer()
