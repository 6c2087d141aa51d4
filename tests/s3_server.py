"""A real S3-compatible server (SeaweedFS) for tests; one process, gone with `stop`."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

START_SECONDS = 60
KEY, SECRET = "test-key", "test-secret"


class S3Server:
    """SeaweedFS on free ports of an address of this machine."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self._address = address
        self._directory = Path(tempfile.mkdtemp(prefix="loraplex-s3-"))
        # Its servers find each other's second port 10,000 above the first.
        self._ports = dict(zip(("master", "volume", "filer", "s3"), _free_ports(4), strict=True))
        self.endpoint = f"http://{address}:{self._ports['s3']}"
        credentials = [{"accessKey": KEY, "secretKey": SECRET}]
        identity = {"name": "test", "credentials": credentials, "actions": ["Admin"]}
        self._config = self._directory / "s3.json"
        self._config.write_text(json.dumps({"identities": [identity]}))
        self._start()

    @property
    def environment(self) -> dict[str, str]:
        """What a client of it finds in its environment."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def _start(self) -> None:
        data = self._directory / "data"
        data.mkdir()
        command = [str(Path(sys.executable).with_name("weed")), "server", f"-dir={data}"]
        command += [
            f"-ip={self._address}",
            f"-ip.bind={self._address}",
            "-filer",
            "-s3",
            "-s3.iam=false",
            "-s3.port.lance=0",
        ]
        command += ["-s3.port.iceberg=0"]
        command += [f"-s3.config={self._config}", "-master.volumeSizeLimitMB=64", "-volume.max=64"]
        command += [f"-{name}.port={port}" for name, port in self._ports.items()]
        with (self._directory / "log").open("a") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                log_text = (self._directory / "log").read_text()
                self.stop()
                raise AssertionError(f"the S3 server did not start:\n{log_text[-4000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)
        for port in self._ports.values():
            for number in (port, port + 10_000):
                for file in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                    file.unlink()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint}/status", timeout=5):
                return True
        except OSError:
            return False


def _free_ports(count: int) -> list[int]:
    """Ports that are free, and the ones 10,000 above too."""
    ports: list[int] = []
    while len(ports) < count:
        with socket.socket() as low, socket.socket() as high:
            low.bind(("127.0.0.1", 0))
            port = low.getsockname()[1]
            try:
                high.bind(("127.0.0.1", port + 10_000))
            except (OSError, OverflowError):
                with socket.socket() as other:
                    other.bind(("127.0.0.1", 0))
                continue
        if port not in ports:
            ports.append(port)
    return ports
