"""Starts a server for a measurement, one of our own or any other, and stops it afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rich.console import Console

START_SECONDS = 300
STOP_SECONDS = 60


@dataclass(frozen=True)
class StartedServer:
    """A server of our own that was started for a measurement."""

    process: subprocess.Popen[bytes]
    url: str
    key: str

    def own_bytes(self) -> int:
        """Return the resident bytes that no other process shares (USS), over all its processes."""
        import psutil

        process = psutil.Process(self.process.pid)
        family = [process, *process.children(recursive=True)]
        return sum(int(member.memory_full_info().uss) for member in family)


@contextlib.contextmanager
def started_server(console: Console, *flags: str) -> Iterator[StartedServer]:
    """Start a server on a free port, with an empty data folder.

    Raises:
        LoadTestError: the server doesn't become ready.
    """
    with (
        tempfile.TemporaryDirectory(prefix="loraplex-") as data_dir,
        contextlib.ExitStack() as stack,
    ):
        port = free_port()
        command = [sys.executable, "-m", "server", "serve", "--data-dir", data_dir]
        command += ["--port", str(port), *flags]
        url = f"http://127.0.0.1:{port}"
        with console.status("starting a server"):
            process = stack.enter_context(running(command, f"{url}/readyz"))
        yield StartedServer(process, url, (Path(data_dir) / "admin.key").read_text().strip())


@contextlib.contextmanager
def running(
    command: Sequence[str],
    ready_url: str,
    *,
    environment: Mapping[str, str] | None = None,
    log: IO[Any] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server, and yield its process once `ready_url` answers. Stop it afterwards.

    Meanwhile SIGTERM does what Ctrl-C does, so that it stops the server, too.

    Raises:
        LoadTestError: the server doesn't become ready.
    """
    with sigterm_interrupts():
        # In a session of its own: Ctrl-C reaches only the measurement, which then stops the server.
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=log or sys.stderr,
            stderr=subprocess.STDOUT if log else None,
            start_new_session=True,
        )
        try:
            _wait_until_ready(process, ready_url)
            yield process
        finally:
            _stop(process)


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt. Only the main thread may do this."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _stop(process: subprocess.Popen[bytes]) -> None:
    try:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    finally:
        # Children that it leaves behind, as vLLM's own server may leave its engine.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    import httpx

    from loadtest.errors import LoadTestError

    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise LoadTestError(f"the server ended with code {process.returncode}")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=30).status_code == 200:
                return
        time.sleep(0.5)
    raise LoadTestError(f"the server wasn't ready within {START_SECONDS} s")
