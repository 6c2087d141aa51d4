"""A `loraplex serve` of the real engine, started and ended as a user would."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
import openai
import psutil

START_SECONDS = 180


class RunningServer:
    """One server process on the loopback interface, on a free port unless one is given.

    Its clients don't read the certificates that plain HTTP has no use for: that is 40 ms each time.
    """

    def __init__(
        self,
        data_dir: Path,
        *flags: str,
        port: int = 0,
        program: Path | None = None,
        command: str = "serve",
        environment: Mapping[str, str] | None = None,
        key_of: RunningServer | None = None,
    ) -> None:
        """`program` is the command to run; by default the one of this environment.

        `key_of`: the server on the same database whose admin key this one knows.
        """
        self.data_dir, self._key_of = data_dir, key_of
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = port or probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = data_dir.parent / f"{data_dir.name}.log"
        program = program or Path(sys.executable).with_name("loraplex")
        line = [str(program), command]
        line += ["--data-dir", str(data_dir), "--port", str(self.port), *flags]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                line,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=environment,
            )

    def wait_until_ready(self, seconds: float = START_SECONDS) -> None:
        """Wait for /readyz; fail with the log if the process ends or time is up."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            if self.status("/readyz") == 200:
                return
            time.sleep(0.2)
        raise AssertionError(f"the server did not become ready:\n{self.log.read_text()}")

    def status(self, path: str) -> int | None:
        """The status code of an open path, or None where nothing answers."""
        try:
            return httpx.get(self.url + path, timeout=30, verify=False).status_code
        except httpx.HTTPError:
            return None

    @property
    def key(self) -> str:
        if self._key_of:
            return self._key_of.key
        return (self.data_dir / "admin.key").read_text().strip()

    def client(self) -> openai.OpenAI:
        client = openai.DefaultHttpxClient(verify=False)
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, http_client=client
        )

    def async_client(self) -> openai.AsyncOpenAI:
        client = openai.DefaultAsyncHttpxClient(verify=False)
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, http_client=client
        )

    def admin(self, method: str, path: str, **arguments: object) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.request(
            method,
            self.url + path,
            headers=headers,
            timeout=60,
            verify=False,
            **arguments,  # type: ignore[arg-type]
        )

    def engine_processes(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "EngineCore" in " ".join(child.cmdline())]

    def terminate(self, seconds: float = 60) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def stop(self) -> None:
        """Whatever state it is in, leave no process behind."""
        if self.process.poll() is None:
            children = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            self.process.wait(10)
            psutil.wait_procs(children, timeout=10)
            for child in children:
                if child.is_running():
                    os.kill(child.pid, signal.SIGKILL)
