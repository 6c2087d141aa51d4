"""A container of the image, run by docker or podman with a root file system that is read-only."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import httpx
import openai
import pytest

from tests.deploy.proxies import free_port

START_SECONDS = 600


def engine() -> list[str]:
    """Return the program that runs containers, with flags that come before its commands.

    `CONTAINER_ENGINE` names another one, such as `podman --runtime runc`.
    """
    if chosen := os.environ.get("CONTAINER_ENGINE"):
        return shlex.split(chosen)
    docker = shutil.which("docker")
    if docker and not subprocess.run([docker, "info"], capture_output=True).returncode:
        return [docker]
    if podman := shutil.which("podman"):
        return [podman]
    pytest.fail("no docker daemon answers, and podman isn't installed")


class Volume:
    """A volume that outlives containers. A new one belongs to the image's user."""

    def __init__(self, name: str) -> None:
        self.name = name
        subprocess.run([*engine(), "volume", "create", name], check=True, capture_output=True)

    def remove(self) -> None:
        subprocess.run([*engine(), "volume", "rm", self.name], check=True, capture_output=True)


class Container:
    """One container. Its process here passes signals on and ends with its exit code.

    It may write to `/data`, to `/tmp`, where nothing can be executed, and to `/dev/shm`.
    `CONTAINER_FLAGS` has more flags, such as `--ulimit` where these limits cannot be raised.
    """

    def __init__(
        self, image: str, volume: Volume, log: Path, *command: str, program: str = "loraplex"
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.name = f"loraplex-{self.port}"
        self._engine, self._log = engine(), log
        flags = ["--read-only", "--tmpfs", "/tmp:noexec", "--volume", f"{volume.name}:/data"]
        if Path(self._engine[0]).name == "podman":  # its own default has more of them
            flags += ["--read-only-tmpfs=false"]
        flags += [
            "--entrypoint",
            program,
            "--shm-size",
            "1g",
            "--cap-drop",
            "ALL",
            "--network",
            "host",
        ]
        flags += ["--env", f"LORAPLEX_PORT={self.port}", "--env", "LORAPLEX_HOST=127.0.0.1"]
        flags += shlex.split(os.environ.get("CONTAINER_FLAGS", ""))
        with log.open("a") as file:
            self._process = subprocess.Popen(
                [*self._engine, "run", "--rm", "--name", self.name, *flags, image, *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_until_ready(self) -> float:
        """Wait for /readyz and return the seconds that it took; fail with the log otherwise."""
        begin = time.monotonic()
        while time.monotonic() - begin < START_SECONDS and self._process.poll() is None:
            try:
                if httpx.get(f"{self.url}/readyz", timeout=30).is_success:
                    return time.monotonic() - begin
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"the container did not become ready:\n{self.log}")

    def execute(self, *command: str) -> str:
        """Run a command in the container, as its user, and return the output of both kinds."""
        done = subprocess.run(
            [*self._engine, "exec", self.name, *command], capture_output=True, text=True
        )
        return (done.stdout + done.stderr).strip()

    def client(self) -> openai.OpenAI:
        key = self.execute("cat", "/data/admin.key")
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def terminate(self) -> None:
        """Send SIGTERM to the container's first process, as Kubernetes does."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float = 90) -> int:
        """Return the exit code."""
        return self._process.wait(seconds)

    def stop(self) -> None:
        """Whatever state it is in, leave no container behind."""
        if self._process.poll() is None:
            subprocess.run([*self._engine, "rm", "--force", self.name], capture_output=True)
            self._process.wait(30)
