"""Makes an image's virtual environment smaller: `python slim.py cpu|gpu FOLDER`.

It removes files that no command of the server reads, strips debugging symbols, compiles the
modules that the server imports, and prints what each of these changed. The Dockerfile runs it.
"""

from __future__ import annotations

import importlib
import os
import py_compile
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

BOTH = ("cpu", "gpu")


@dataclass(frozen=True)
class Unneeded:
    """Files that nothing reads, as patterns below the environment (`./`) or its packages."""

    what: str
    patterns: tuple[str, ...]
    keep: tuple[str, ...] = ()
    builds: tuple[str, ...] = BOTH


UNNEEDED = (
    Unneeded("tests of packages", ("**/tests", "nltk/test", "torch/test")),
    Unneeded("PyTorch's programs", ("torch/bin/*",), keep=("torch/bin/torch_shm_manager",)),
    Unneeded("static libraries", ("**/*.a", "./lib/*.a")),
    # Nothing is compiled with them: TORCH_COMPILE_DISABLE is set on CPU (docs/settings.md).
    Unneeded("PyTorch's C++ headers", ("torch/include", "torch/share/cmake"), builds=("cpu",)),
    Unneeded("bitsandbytes for CUDA", ("bitsandbytes/libbitsandbytes_cuda*",), builds=("cpu",)),
    # vLLM asks for Intel's OpenMP, and preloads PyTorch's. What is below serves Intel's compiler
    # and GPUs; libiomp5.so stays.
    Unneeded(
        "Intel's OpenMP for compilers and GPUs",
        (
            *("./opt/compiler", "./lib/libarcher*", "./lib/libomptarget*", "./lib/libiomp5.dbg"),
            *("./lib/libiompstubs5*", "./lib/libpi_*", "./lib/libsycl*", "./lib/libur_*"),
        ),
        builds=("cpu",),
    ),
    Unneeded("names of countries in other languages", ("pycountry/locales/*",)),
)

STRIPPED = ("torch/lib/*.so", "vllm/*.so", "uvloop/*.so")
"""Libraries with more than 10 MB of symbols that only debuggers read."""

IMPORTED = (
    *("alembic.command", "bitsandbytes", "cryptography.x509", "fastapi", "gguf", "httptools"),
    *("httpx", "huggingface_hub", "jinja2", "model_signing", "obstore", "peft", "psycopg"),
    *("prometheus_client", "pydantic_settings", "rich.console", "sqlalchemy.orm", "typer"),
    *("safetensors.torch", "transformers", "transformers.models.auto", "uvicorn", "uvloop"),
    *("sqlalchemy.dialects.postgresql.psycopg", "sqlalchemy.dialects.sqlite.pysqlite"),
    *("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk.trace"),
    *("torch.distributed", "torch._dynamo", "torch._inductor.config", "xgrammar", "llguidance"),
    *("vllm.entrypoints.openai.api_server", "vllm.entrypoints.anthropic.api_router"),
    *("vllm.lora.model_manager", "vllm.model_executor.models.llama", "vllm.v1.engine.core"),
    *("vllm.v1.engine.async_llm", "vllm.v1.structured_output.backend_xgrammar"),
    *("vllm.v1.worker.cpu_worker", "vllm.v1.worker.gpu_worker"),
    *("transformers.models.llama.modeling_llama", "vllm.lora.punica_wrapper.punica_cpu"),
)
"""What the processes of a server import, with all that these import themselves. Other modules
are compiled each time that a command imports them."""


def main(build: str, folder: Path) -> None:
    """Make the environment in `folder` smaller. Prints the megabytes that each step freed."""
    (packages,) = folder.glob("lib/python3.*/site-packages")
    before = left = size_of(folder)
    for unneeded in UNNEEDED:
        if build in unneeded.builds:
            for path in find(unneeded, folder, packages):
                remove(path)
            left = report(unneeded.what, left, folder)
    if build == "cpu":
        strip(packages)
        left = report("symbols for debuggers", left, folder)
    compile_imported(packages)
    left = report("bytecode of what is imported, and of nothing else", left, folder)
    print(f"{before / 1e6:7,.0f} MB before\n{left / 1e6:7,.0f} MB after")


def find(unneeded: Unneeded, folder: Path, packages: Path) -> Iterator[Path]:
    """Yield the paths that match, without those to keep."""
    kept = {path for pattern in unneeded.keep for path in packages.glob(pattern)}
    for pattern in unneeded.patterns:
        root = folder if pattern.startswith("./") else packages
        yield from set(root.glob(pattern.removeprefix("./"))) - kept


def remove(path: Path) -> None:
    """Remove a file, a link, or a whole folder; it may be gone with a folder above it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def strip(packages: Path) -> None:
    """Remove the symbols that linking and running don't need."""
    for pattern in STRIPPED:
        for library in packages.glob(pattern):
            subprocess.run(["strip", "--strip-unneeded", library], check=True)


def compile_imported(packages: Path) -> None:
    """Keep bytecode only of the modules that are imported, and never compare it with sources.

    A module that cannot be imported on the machine that builds, such as one for a GPU, is named.
    """
    for cached in list(packages.rglob("__pycache__")):
        shutil.rmtree(cached)
    for name in IMPORTED:
        try:
            importlib.import_module(name)
        except Exception as error:
            print(f"        not imported: {name}: {error}")
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    for module in list(sys.modules.values()):
        # Asked for an attribute, a module that loads lazily would load.
        file = str(vars(module).get("__file__")) if isinstance(module, ModuleType) else ""
        if file.endswith(".py") and Path(file).is_relative_to(packages):
            py_compile.compile(file, invalidation_mode=mode)


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    total = 0
    for parent, _, names in os.walk(folder):
        total += sum(os.lstat(os.path.join(parent, name)).st_size for name in names)
    return total


def report(what: str, before: int, folder: Path) -> int:
    """Print how much smaller a folder became. Returns its size."""
    now = size_of(folder)
    print(f"{(before - now) / 1e6:7,.0f} MB  {what}", flush=True)
    return now


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
