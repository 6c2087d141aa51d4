"""What the fork server imports: all that the engine's process needs before its first answer.

Its order matters: vLLM's worker asks for its shared memory module to be the first.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os

from server.engine.process.titles import set_title

log = logging.getLogger(__name__)

MODULES = (
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.model_loader.default_loader",
    "vllm.lora.worker_manager",
    "xgrammar",
    "server.engine.worker.extension",
    "server.engine.worker.punica",
    "server.engine.worker.reader",
    "server.engine.worker.linear_cpu.dispatch",
    "server.engine.worker.decoder_cpu.replacing",
)


def import_all(modules: tuple[str, ...]) -> None:
    """Import modules. What fails is left to the engine's process, which then says why."""
    gc.disable()  # it would look at all that is imported again and again, and find nothing
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:
            log.debug("%s is not imported in advance: %r", name, error)
    gc.freeze()  # so that a collection in the engine's process doesn't copy these pages


# Ctrl-C then reaches the server alone, which ends this process.
os.setpgid(0, 0)
set_title()
import_all(MODULES)
