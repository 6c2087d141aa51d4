"""Sets the environment variables that vLLM and its libraries read.

This must be done before vLLM is imported. Variables that the operator has set stay as they are.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from server.engine.device import defaults
from server.engine.device.device import is_cpu_build

SERVER_PID = "_LORAPLEX_SERVER_PID"
"""Holds the server's process id: the engine's processes end when that process ends."""

CPU_LORA_KERNELS = "_LORAPLEX_CPU_LORA_KERNELS"
"""Holds the setting that says which LoRA operators the engine uses on CPU."""

GPU_LORA_KERNELS = "_LORAPLEX_GPU_LORA_KERNELS"
"""Holds the same for CUDA."""

CPU_BASE_KERNELS = "_LORAPLEX_CPU_BASE_KERNELS"
"""Holds the setting that says which kernels compute the base on CPU."""

KERNEL_CACHE = "_LORAPLEX_KERNEL_CACHE"
"""Holds the folder where the kernels that are compiled for CPU are kept."""

BASE_QUANTIZATION = "_LORAPLEX_BASE_QUANTIZATION"
"""Says what the base's weights were rounded to. Empty means nothing."""

_GPU_LORA_LOADING = "_LORAPLEX_GPU_LORA_LOADING"

_GPU_LORA_TILES = "_LORAPLEX_GPU_LORA_TILES"

_SOCKET_FOLDER = "VLLM_RPC_BASE_PATH"

_LONGEST_SOCKET_NAME = len("/00000000-0000-0000-0000-000000000000")
"""vLLM's, in its folder."""

_LONGEST_SOCKET_PATH = 107
"""What Linux allows, in bytes."""

_VLLMS_THREADS = "VLLM_CPU_OMP_THREADS_BIND"

_THREADS = ("OMP_NUM_THREADS", "OMP_PLACES", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY", _VLLMS_THREADS)
"""If the operator sets one of these, the server sets none of them."""

_PRELOADED = "LD_PRELOAD"

_OPENMP_LIBRARIES = ("libomp", "libgomp", "libiomp")

_COMPILERS = ("/usr/local/cuda/bin/nvcc",)
"""Where CUDA's compiler is looked for besides PATH and CUDA_HOME."""

_QUIET = {
    "HF_HUB_VERBOSITY": "error",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TORCH_LOGS": "-torch._library",
    "TQDM_DISABLE": "1",
}
"""Silences the engine's processes, which log much at start. `--log-level debug` shows it."""


_FIXED = {
    # If this is on, vLLM keeps each response for ever, and every tenant that knows its id gets it.
    "VLLM_ENABLE_RESPONSES_API_STORE": "0",
}
"""Variables that the operator can't change: other values would break what the server promises."""


def prepare_environment(base: str, log_level: str, cpu_lora_kernels: str, data_dir: Path) -> None:
    """Set the variables for this device.

    If the base is a directory, the engine's libraries get no access to a model hub.
    """
    is_cpu = is_cpu_build()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or data_dir.absolute() / "cache")
    variables = {} if log_level == "debug" else dict(_QUIET)
    variables |= defaults.environment(
        is_cpu=is_cpu,
        has_cuda_compiler=not is_cpu and has_cuda_compiler(),
        cache=cache,
    )
    if _VLLMS_THREADS in os.environ:  # vLLM reads it only in worker processes
        variables.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    for name, value in variables.items():
        os.environ.setdefault(name, value)
    os.environ.update(_FIXED)
    # This library reads the environment when it is imported. It is imported here, before the next
    # lines, so that this process may still ask a hub when an adapter is registered (unless the
    # operator forbids it). The engine's processes may not.
    import huggingface_hub.constants  # noqa: F401

    if Path(base).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
    os.environ[SERVER_PID] = str(os.getpid())
    os.environ[CPU_LORA_KERNELS] = cpu_lora_kernels
    os.environ[KERNEL_CACHE] = str(cache / "loraplex" / "kernels")


def kernel_cache() -> Path | None:
    """Return where compiled kernels are kept, or None if no server started this process."""
    path = os.environ.get(KERNEL_CACHE)
    return Path(path) if path else None


def runs_in_one_process() -> bool:
    """Return whether the engine's process runs the model itself, as on CPU."""
    return is_cpu_build() and os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0"


def snapshot() -> dict[str, str]:
    """Return this process's variables."""
    return dict(os.environ)


def replace(variables: Mapping[str, str]) -> None:
    """Give this process these variables and no others."""
    os.environ.clear()
    os.environ.update(variables)


def offer_socket_folder(folder: str) -> None:
    """Have vLLM put its sockets into a folder, unless their paths would be too long there."""
    if len(os.fsencode(folder)) + _LONGEST_SOCKET_NAME <= _LONGEST_SOCKET_PATH:
        os.environ.setdefault(_SOCKET_FOLDER, folder)


def keep_variables_of_vllm() -> None:
    """Have vLLM in this process read no variable again, as in its engine's process.

    Otherwise it reads one of them for each token. What is set later has no effect on vLLM here.
    """
    from vllm import envs

    envs.enable_envs_cache()


def read_by_the_loader() -> dict[str, str | None]:
    """Return the variables that a process reads while its libraries are loaded, and never again."""
    return {name: os.environ.get(name) for name in (*_THREADS, _PRELOADED)}


@contextlib.contextmanager
def preloading() -> Iterator[None]:
    """Have the processes that are started within this context load PyTorch's OpenMP first.

    vLLM does the same for the processes that it starts on CPU, but only once it is imported.
    """
    before = os.environ.get(_PRELOADED, "")
    spec = importlib.util.find_spec("torch")
    torch = Path(spec.origin).parent if spec and spec.origin else None
    folders = [torch.parent / "torch.libs", torch / "lib"] if torch else []
    found = [str(file) for folder in folders for file in sorted(folder.glob("libgomp*.so*"))]
    if not found or any(name in before for name in _OPENMP_LIBRARIES):
        yield
        return
    with _for_children({_PRELOADED: f"{before}:{found[0]}" if before else found[0]}):
        yield


def has_cuda_compiler() -> bool:
    """Return whether there is nvcc, with which FlashInfer compiles kernels."""
    in_home = Path(os.environ.get("CUDA_HOME", "/"), "bin", "nvcc")
    return bool(shutil.which("nvcc")) or any(Path(p).is_file() for p in (in_home, *_COMPILERS))


def compiling(engine_args: Sequence[str]) -> str:
    """Return a text that says which compilers the engine uses on a GPU, and why one is off."""
    compiled = "torch.compile and CUDA graphs are on"
    if "--enforce-eager" in engine_args:
        compiled = "torch.compile and CUDA graphs are off (--enforce-eager)"
    elif os.environ.get("TORCH_COMPILE_DISABLE") == "1":
        compiled = "torch.compile is off (TORCH_COMPILE_DISABLE)"
    if os.environ.get("VLLM_USE_FLASHINFER_SAMPLER") == "0":
        compiled += ", FlashInfer's sampler is off (it needs nvcc)"
    return compiled


def choose_traces(protocol: str) -> None:
    """Tell vLLM by which protocol its spans go: the server's, `grpc` or `http/protobuf`."""
    os.environ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = protocol
    os.environ.setdefault("OTEL_SERVICE_NAME", "loraplex")


def limit_choices(max_choices: int) -> None:
    """Set the most choices (`n`) of one request in vLLM, which then refuses more as well."""
    os.environ["VLLM_MAX_N_SEQUENCES"] = str(max_choices)


def choose_gpu_lora(kernels: str, loading: str, tiles: Path) -> None:
    """Tell the engine's processes how they run LoRA on CUDA.

    `kernels` names the LoRA operators, `loading` says how adapters get into slots, and `tiles` is
    the path of the table of tile sizes.
    """
    os.environ[GPU_LORA_KERNELS] = kernels
    os.environ[_GPU_LORA_LOADING] = loading
    os.environ[_GPU_LORA_TILES] = str(tiles)


def choose_cpu_base(kernels: str, quantization: str) -> None:
    """Set which kernels the engine's processes compute the base with on CPU.

    `quantization` names what the base's weights were rounded to, or is empty.
    """
    os.environ[CPU_BASE_KERNELS] = kernels
    os.environ[BASE_QUANTIZATION] = quantization


def gpu_lora_streams() -> bool:
    """Return True if slots are filled on a CUDA stream of their own, while steps run."""
    return os.environ.get(_GPU_LORA_LOADING) == "stream"


def gpu_lora_tiles() -> Path | None:
    """Return the path given to `choose_gpu_lora`, or None if no server started this process."""
    path = os.environ.get(_GPU_LORA_TILES)
    return Path(path) if path else None


@contextlib.contextmanager
def threads(variables: Mapping[str, str]) -> Iterator[None]:
    """Set OpenMP's variables for the processes that are started within this context.

    Does nothing if the operator has set one of them. Afterwards they are removed from this process:
    if OpenMP binds threads, it also binds the thread that imports it.
    """
    is_operators = any(name in os.environ for name in _THREADS)
    with _for_children({} if is_operators else variables):
        yield


@contextlib.contextmanager
def _for_children(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
