"""The servers that are set side by side: how each is started, and what it can't do."""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from loadtest.plan.scenario import Scenario
from loadtest.started_server import free_port, running

SLOTS, KV_CACHE_GIB = 8, 2
STREAMS = 16


@dataclass(frozen=True)
class Contestant:
    """A server as it is to be started."""

    name: str
    command: Callable[[int], list[str]]
    """On this port."""
    ready_path: str
    environment: dict[str, str] = field(default_factory=dict)
    loadtest_flags: tuple[str, ...] = ()
    key_file: Path | None = None
    num_adapters: int | None = None
    """It has so many from the start and takes no others; None: it takes any."""

    def refusal(self, scenario: Scenario) -> str | None:
        """Why it can't be asked this, if it can't."""
        if self.num_adapters is None:
            return None
        if scenario.churn.any:
            return "its adapters are fixed when it starts: no registrations, no churn"
        wanted = len(scenario.made_adapters())
        if wanted > self.num_adapters:
            return f"it was given {self.num_adapters} adapters, and this wants {wanted}"
        return None


@dataclass(frozen=True)
class Started:
    """A contestant that is ready."""

    contestant: Contestant
    process: subprocess.Popen[bytes]
    url: str

    @property
    def key(self) -> str:
        """Its admin key, if it has one."""
        file = self.contestant.key_file
        return file.read_text().strip() if file else ""

    def cpu_seconds(self) -> float:
        """That its processes have taken so far."""
        total = 0.0
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.process.pid)
            for member in (process, *process.children(recursive=True)):
                times = member.cpu_times()
                total += times.user + times.system
        return total


@contextlib.contextmanager
def started(contestant: Contestant, log: Path) -> Iterator[Started]:
    """Start it and stop it; what it prints goes to `log`.

    Raises:
        LoadTestError: it doesn't become ready.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (
        log.open("wb") as file,
        running(
            contestant.command(port),
            url + contestant.ready_path,
            environment=os.environ | contestant.environment,
            log=file,
        ) as process,
    ):
        yield Started(contestant, process, url)


def ours(data_dir: Path, base: Path) -> Contestant:
    """This project's server."""
    command = [sys.executable, "-m", "server", "serve", "--data-dir", str(data_dir)]
    command += ["--base", str(base)]
    command += ["--max-loras", str(SLOTS), "--kv-cache-gib", str(KV_CACHE_GIB)]
    return Contestant(
        "Loraplex",
        lambda port: [*command, "--port", str(port)],
        "/readyz",
        key_file=data_dir / "admin.key",
    )


def vllm(arguments: argparse.Namespace, weights: Path) -> Contestant:
    """vLLM's own server, with as many slots and as much memory, without our plugin."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(arguments.base), "--served-model-name", "base"]
    command += ["--enable-lora", "--max-loras", str(SLOTS), "--max-lora-rank", "16"]
    command += ["--max-cpu-loras", str(4 * SLOTS)]
    environment = {
        "VLLM_PLUGINS": "",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TORCH_COMPILE_DISABLE": "1",
        "GOMP_SPINCOUNT": "1000",
    }
    if arguments.vllm_path:
        paths = [str(arguments.vllm_path.resolve()), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return Contestant(
        "vLLM",
        lambda port: [*command, "--host", "127.0.0.1", "--port", str(port)],
        "/health",
        environment,
        ("--weights-dir", str(weights)),
    )


def llama_cpp(arguments: argparse.Namespace, weights: Path) -> Contestant:
    """llama.cpp's server, its adapters those of the command line, in their order."""
    if not arguments.llama_server or not arguments.gguf:
        raise SystemExit("llama-cpp wants --llama-server BINARY --gguf FILE [--lora-gguf FILE ...]")
    command = [str(arguments.llama_server), "-m", str(arguments.gguf)]
    if arguments.lora_gguf:
        command += ["--lora", ",".join(map(str, arguments.lora_gguf))]
        command += ["--lora-init-without-apply"]
    command += ["-np", str(STREAMS), "-t", str(os.cpu_count()), "-c", str(1024 * STREAMS)]
    return Contestant(
        "llama.cpp",
        lambda port: [*command, "--host", "127.0.0.1", "--port", str(port)],
        "/health",
        loadtest_flags=("--server", "llama-cpp"),
        num_adapters=len(arguments.lora_gguf),
    )


def naive_peft(arguments: argparse.Namespace, weights: Path) -> Contestant:
    """transformers and PEFT, one request at a time."""
    command = [sys.executable, "-m", "tests.benchmarks.naive_peft", str(weights)]
    return Contestant(
        "naive PEFT",
        lambda port: [*command, "--port", str(port)],
        "/v1/models",
        num_adapters=sum(path.is_dir() for path in weights.iterdir()),
    )


PEERS = {"vllm": vllm, "llama-cpp": llama_cpp, "naive-peft": naive_peft}
