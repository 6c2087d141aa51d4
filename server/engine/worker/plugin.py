"""The plugin that vLLM runs in each of its processes (entry point `vllm.general_plugins`)."""

from __future__ import annotations

import functools
import os
import select
import signal
import threading
from typing import Any

from server.engine.environment import (
    BASE_QUANTIZATION,
    CPU_BASE_KERNELS,
    CPU_LORA_KERNELS,
    GPU_LORA_KERNELS,
    SERVER_PID,
)
from server.engine.worker.speculation import PROPOSER


def register() -> None:
    """Adapt vLLM to many tenants. An engine process is also made to end with the server."""
    _clear_kv_blocks_before_reuse()
    _allow_amx()
    _keep_seeds()
    _accept_all_parameters_beside_guesses()
    if os.environ.get(CPU_LORA_KERNELS) != "stock":
        _replace_cpu_lora_operators()
    if os.environ.get(GPU_LORA_KERNELS) != "stock":
        _replace_gpu_lora_operators()
    if (kernels := os.environ.get(CPU_BASE_KERNELS)) != "stock":
        _replace_cpu_base_operators(always=kernels == "compiled")
    server_pid = os.environ.get(SERVER_PID)
    if server_pid and int(server_pid) != os.getpid():
        # Ctrl-C reaches the terminal's whole process group. The engine leaves that group, because
        # it must run on while the server drains.
        os.setpgid(0, 0)
        _die_with(int(server_pid))
        _begin_reads_early()


def _clear_kv_blocks_before_reuse() -> None:
    """Turn on vLLM's own clearing of blocks, which it otherwise uses only for models that need it.

    A block keeps the values that its last request wrote. Attention masks the values behind a
    prompt's end by multiplying them with 0, and 0 x NaN is NaN. So once one adapter has overflowed,
    all later answers would be wrong, also those of the base (vLLM issue 35219).
    """
    from vllm.v1.kv_cache_interface import KVCacheConfig

    KVCacheConfig.needs_kv_cache_zeroing = property(lambda _config: True)


def _allow_amx() -> None:
    """Ask Linux to let this process use AMX: vLLM's attention uses it and leaves asking to others.

    oneDNN asks with its first large product. Where our products take the place of those, attention
    may come first, and Linux would kill the process (SIGILL).
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        import torch

        torch.cpu._init_amx()


def _keep_seeds() -> None:
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    platform = type(current_platform)
    register_overrides = platform.register_triton_kernel_overrides

    def register_and_keep(_platform: Any) -> None:
        # vLLM calls this in a worker before it makes a model runner. Importing that takes seconds,
        # which only the engine's process needs to spend.
        from server.engine.worker.seeds import keep_seeds

        register_overrides()
        keep_seeds()

    platform.register_triton_kernel_overrides = classmethod(register_and_keep)


@functools.cache
def _accept_all_parameters_beside_guesses() -> None:
    """Have vLLM accept `min_p` and `logit_bias` with our speculation: such requests get no guesses.

    vLLM's own kinds of speculation still refuse them.
    """
    from vllm.sampling_params import SamplingParams

    refuse = SamplingParams._validate_spec_decode

    def validate(parameters: Any, speculation: Any) -> None:
        if speculation is None or speculation.model != PROPOSER:
            refuse(parameters, speculation)

    SamplingParams._validate_spec_decode = validate


def _replace_cpu_lora_operators() -> None:
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        wrapper = "server.engine.worker.punica.GroupedPunicaWrapper"
        type(current_platform).get_punica_wrapper = classmethod(lambda _platform: wrapper)


def _replace_gpu_lora_operators() -> None:
    from vllm.platforms import current_platform

    if current_platform.is_cuda():
        wrapper = "server.engine.worker.lora_gpu.punica.FusedPunicaWrapper"
        type(current_platform).get_punica_wrapper = classmethod(lambda _platform: wrapper)


def _replace_cpu_base_operators(*, always: bool) -> None:
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from server.engine.worker.linear_cpu.dispatch import replace_products

        replace_products(always=always, when_used=_replace_cpu_layers)
        if os.environ.get(BASE_QUANTIZATION):
            # Importing vLLM's quantized layers takes half a second.
            from server.engine.worker.linear_cpu.four_bit import replace_four_bit_products

            replace_four_bit_products(always=always, when_used=_replace_cpu_layers)


@functools.cache
def _replace_cpu_layers() -> None:
    # Importing vLLM's models takes seconds, which only the engine's process needs to spend.
    from server.engine.worker.decoder_cpu.replacing import replace_layers

    replace_layers()


def _begin_reads_early() -> None:
    # Importing vLLM's engine takes seconds, which only the engine's process needs to spend.
    from server.engine.worker.early_reads import begin_reads_early

    begin_reads_early()


def _die_with(server_pid: int) -> None:
    """Kill this process when the server ends for any reason. pidfd_open(2) saves polling."""
    try:
        server = os.pidfd_open(server_pid)
    except ProcessLookupError:
        os.kill(os.getpid(), signal.SIGKILL)
        return

    def wait() -> None:
        select.select([server], [], [])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="die-with-server", daemon=True).start()
