"""A server of our own, started for a measurement and stopped after it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from rich.console import Console

START_SECONDS = 300
STOP_SECONDS = 60


@dataclass(frozen=True)
class StartedServer:
    """A server started for a scenario."""

    process: subprocess.Popen[bytes]
    url: str
    key: str

    def own_bytes(self) -> int:
        """Resident memory that no other process shares (USS), over all its processes."""
        import psutil

        process = psutil.Process(self.process.pid)
        family = [process, *process.children(recursive=True)]
        return sum(int(member.memory_full_info().uss) for member in family)


@contextlib.contextmanager
def started_server(console: Console, *flags: str) -> Iterator[StartedServer]:
    """A new server on a free port, with an empty data folder.

    Raises:
        LoadTestError: it doesn't become ready.
    """
    with tempfile.TemporaryDirectory(prefix="loraplex-") as data_dir:
        port = _free_port()
        command = [sys.executable, "-m", "server", "serve", "--data-dir", data_dir]
        command += ["--port", str(port), *flags]
        # A session of its own: Ctrl-C is for the measurement, which then stops it.
        process = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            with console.status("starting a server"):
                _wait_until_ready(process, url)
            yield StartedServer(process, url, (Path(data_dir) / "admin.key").read_text().strip())
        finally:
            process.terminate()
            process.wait(STOP_SECONDS)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    from loadtest.errors import LoadTestError

    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise LoadTestError(f"the server ended with code {process.returncode}")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/readyz", timeout=30).status_code == 200:
                return
        time.sleep(0.5)
    raise LoadTestError(f"the server wasn't ready within {START_SECONDS} s")
