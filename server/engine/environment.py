"""Process-wide defaults that vLLM and its libraries read from the environment.

Set before vLLM is imported; what the operator has set stays.
"""

from __future__ import annotations

import os
from pathlib import Path

SERVER_PID = "_LORAPLEX_SERVER_PID"
"""Tells the engine's processes whose death they must not survive."""

CPU_LORA_KERNELS = "_LORAPLEX_CPU_LORA_KERNELS"
"""Tells the engine's processes which LoRA operators to use on CPU: the setting's value."""

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
    # Both cores for the engine: its own choice reserves one for this process (measured slower).
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
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
    defaults = _DEFAULTS if log_level == "debug" else _DEFAULTS | _QUIET
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
