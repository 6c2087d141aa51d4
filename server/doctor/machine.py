"""Checks the machine: its platform, installed packages, compiler, GPU driver and limits."""

from __future__ import annotations

import platform
import re
import resource
import shutil
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from server.doctor.finding import Finding, ok, problem, warning
from server.engine.device.memory import EngineOptions
from server.settings import Settings

DRIVER = Path("/proc/driver/nvidia/version")
SHARED_MEMORY = Path("/dev/shm")
LEAST_FILES = 4096
LEAST_SHARED_BYTES = 1 << 30
INSTALL_COMPILER = "install a C compiler, on Debian: apt-get install gcc libc6-dev"


def check_platform(
    system: str = platform.system(), processor: str = platform.machine()
) -> Iterator[Finding]:
    """Yield whether this is Linux on x86-64."""
    found = f"{system} on {processor}"
    if (system, processor) == ("Linux", "x86_64"):
        yield ok("platform", f"{found}, Python {platform.python_version()}")
    else:
        yield problem("platform", f"{found} was never tried", "use Linux on x86-64")


def check_packages(build: str, requirements: Iterable[str] | None = None) -> Iterator[Finding]:
    """Yield which packages are missing, or have another version than the one that was tested.

    Args:
        build: the extra whose packages are wanted, `cpu` or `gpu`.
        requirements: what is required; by default what this project's own metadata say.
    """
    if requirements is None:
        requirements = metadata.requires("loraplex") or []
    faults = [fault for text in requirements if (fault := _fault(Requirement(text), build))]
    if faults:
        yield problem(
            "packages",
            "; ".join(faults),
            f"install them: make install, or pip install 'loraplex[{build}]'",
        )
    else:
        yield ok("packages", f"all that the {build} build needs are installed")


def _fault(requirement: Requirement, build: str) -> str:
    """Return what is wrong with an installed package, or an empty string."""
    if requirement.marker and not requirement.marker.evaluate({"extra": build}):
        return ""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is missing"
    if requirement.specifier.contains(version, prereleases=True):
        return ""
    return f"{requirement.name} is {version}, but {requirement.specifier} was tested"


def _why_no_kernel() -> str:
    """Compile the LoRA kernel as the engine does. Returns why that fails, or an empty string."""
    from server.engine.worker.compiled import KernelUnavailable
    from server.engine.worker.lora_cpu.kernel import RowsKernel

    try:
        RowsKernel()
    except KernelUnavailable as error:
        return str(error)
    return ""


def check_compiler(
    *, is_cpu: bool, why_no_kernel: Callable[[], str] = _why_no_kernel
) -> Iterator[Finding]:
    """Yield whether there is a C compiler that can make what the engine needs.

    On CPU it compiles the LoRA kernel, which is tried here. On a GPU Triton calls it.
    """
    if not is_cpu:
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler:
            yield ok("compiler", f"{compiler}, for Triton's kernels")
        else:
            yield problem("compiler", "Triton's kernels need a C compiler", INSTALL_COMPILER)
        return
    if reason := why_no_kernel():
        yield warning("compiler", f"adapters are computed more slowly: {reason}", INSTALL_COMPILER)
    else:
        yield ok("compiler", "the LoRA kernel compiles")


def driver_version(file: Path = DRIVER) -> str:
    """Return the version of NVIDIA's driver, or an empty string if there is none."""
    try:
        text = file.read_text()
    except OSError:
        return "of unknown version" if shutil.which("nvidia-smi") else ""
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return found[0] if found else "of unknown version"


def _cuda_works() -> bool:
    import torch

    return torch.cuda.is_available()


def check_driver(
    *, is_cpu: bool, version: str, cuda_works: Callable[[], bool] = _cuda_works
) -> Iterator[Finding]:
    """Yield whether driver and installed packages fit each other.

    `version` is the driver's, empty if there is none.
    """
    if is_cpu and not version:
        yield ok("GPU", "there is no NVIDIA driver, and the installed vLLM computes on CPU")
    elif is_cpu:
        yield warning(
            "GPU",
            f"there is an NVIDIA driver ({version}), but the installed vLLM computes on CPU",
            "install the packages for GPUs: make serve ENGINE=gpu, or pip install 'loraplex[gpu]'",
        )
    elif not version:
        yield problem(
            "GPU",
            "the installed vLLM computes on GPUs, and there is no NVIDIA driver",
            "install the driver, or the packages for CPU: make serve ENGINE=cpu, or "
            "pip install 'loraplex[cpu]'",
        )
    elif not cuda_works():
        yield problem(
            "GPU",
            f"PyTorch can't use a GPU with the NVIDIA driver {version}",
            "update the driver, and let the container see the GPU (docker run --gpus all)",
        )
    else:
        yield ok("GPU", f"NVIDIA driver {version}")


def open_files_limit() -> int:
    """Return how many files and connections this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def shared_memory_bytes(folder: Path = SHARED_MEMORY) -> int:
    """Return the size of the memory that processes share through files. 0 if there is none."""
    return shutil.disk_usage(folder).total if folder.is_dir() else 0


def check_limits(settings: Settings, files: int, shared_bytes: int) -> Iterator[Finding]:
    """Yield whether the system lets the server open enough files and share enough memory.

    `files` may be open at a time, and `shared_bytes` are at /dev/shm.
    """
    if 0 <= files < LEAST_FILES:  # -1 means no limit
        yield warning(
            "open files",
            f"{files} files and connections may be open at a time, which bounds the clients",
            "raise the limit: ulimit -n 65536 (LimitNOFILE in a systemd unit)",
        )
    else:
        yield ok("open files", f"{files} files and connections may be open at a time")
    num_shards = EngineOptions.of(settings.engine_args).num_shards
    if num_shards > 1:
        found = f"{SHARED_MEMORY} has {shared_bytes / (1 << 30):.2g} GiB"
        if shared_bytes < LEAST_SHARED_BYTES:
            yield warning(
                "shared memory",
                f"{found}, and {num_shards} workers exchange data there",
                "give it 1 GiB or more: docker run --shm-size=2g, or the chart's sharedMemory",
            )
        else:
            yield ok("shared memory", found)
