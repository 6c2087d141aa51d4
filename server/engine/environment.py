"""Process-wide defaults that vLLM and its libraries read from the environment.

Set before vLLM is imported; what the operator has set stays.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

SERVER_PID = "_LORAPLEX_SERVER_PID"
"""Tells the engine's processes whose death they must not survive."""

CPU_LORA_KERNELS = "_LORAPLEX_CPU_LORA_KERNELS"
"""Tells the engine's processes which LoRA operators to use on CPU: the setting's value."""

GPU_LORA_KERNELS = "_LORAPLEX_GPU_LORA_KERNELS"
"""The same on CUDA."""

_GPU_LORA_LOADING = "_LORAPLEX_GPU_LORA_LOADING"

_GPU_LORA_TILES = "_LORAPLEX_GPU_LORA_TILES"

_VLLMS_THREADS = "VLLM_CPU_OMP_THREADS_BIND"

_THREADS = ("OMP_NUM_THREADS", "OMP_PLACES", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY", _VLLMS_THREADS)
"""Whoever sets one of these has decided about the engine's threads."""

_QUIET = {
    "HF_HUB_VERBOSITY": "error",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TORCH_LOGS": "-torch._library",
    "TQDM_DISABLE": "1",
}
"""What the engine's processes print at start concerns nobody who serves with it."""

_DEFAULTS = {
    # How long a thread spins at a barrier before it sleeps; by default for milliseconds. With one
    # other busy process on two cores a token then took up to 1,700 ms, and 60 so. It costs a fifth
    # of the speed on a machine of its own: set it to 300000 there.
    "GOMP_SPINCOUNT": "1000",
    # The engine's process runs the model itself: a worker process would import everything once
    # more and cost each step a message there and back. With several workers vLLM has them anyway.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # The first request with log-probabilities would compile for 12-21 s and stall every stream.
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def prepare_environment(base: str, log_level: str, cpu_lora_kernels: str) -> None:
    """Set the defaults; a base on disk also keeps the engine's libraries from asking a hub."""
    defaults = _DEFAULTS | ({} if log_level == "debug" else _QUIET)
    if _VLLMS_THREADS in os.environ:  # which vLLM obeys in worker processes only
        del defaults["VLLM_ENABLE_V1_MULTIPROCESSING"]
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # The library reads its environment now: registering may ask a hub from this process, unless
    # the operator has forbidden it, and only the engine's processes may not.
    import huggingface_hub.constants  # noqa: F401

    if Path(base).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
    os.environ[SERVER_PID] = str(os.getpid())
    os.environ[CPU_LORA_KERNELS] = cpu_lora_kernels


def choose_gpu_lora(kernels: str, loading: str, tiles: Path) -> None:
    """Tell the engine's processes which LoRA operators to use on CUDA, and their tile sizes.

    Also how adapters get into slots.
    """
    os.environ[GPU_LORA_KERNELS] = kernels
    os.environ[_GPU_LORA_LOADING] = loading
    os.environ[_GPU_LORA_TILES] = str(tiles)


def gpu_lora_streams() -> bool:
    """Return whether slots are to be filled on a stream beside the step."""
    return os.environ.get(_GPU_LORA_LOADING) == "stream"


def gpu_lora_tiles() -> Path | None:
    """Return the path that `choose_gpu_lora` was given; None in a process of another server."""
    path = os.environ.get(_GPU_LORA_TILES)
    return Path(path) if path else None


@contextlib.contextmanager
def threads(variables: Mapping[str, str]) -> Iterator[None]:
    """Have the processes started meanwhile read OpenMP's variables, unless the operator sets any.

    Not for this process: a bound OpenMP binds the thread that imports it too.
    """
    if any(name in os.environ for name in _THREADS):
        yield
        return
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
