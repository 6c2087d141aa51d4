"""The real Envoy and HAProxy on the configurations that are shipped."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import pytest
import yaml

from tests.helm.programs import CHART, ROOT, fetch


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server(Protocol):
    """Whatever listens on a port of the loopback interface."""

    port: int


class Proxy:
    """One proxy process before two servers."""

    def __init__(
        self, name: str, command: list[str], port: int, environment: dict[str, str]
    ) -> None:
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self._command, self._environment = command, os.environ | environment
        self.start()

    def start(self) -> None:
        """Start, at first and after `kill`."""
        self._process = subprocess.Popen(self._command, env=self._environment)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def start_haproxy(
    folder: Path,
    servers: Sequence[Server],
    *,
    dedicated: Server | None = None,
    names: str = "",
) -> Proxy:
    """`deploy/haproxy.cfg` as it is; addresses come from the environment.

    `dedicated`: the dedicated server of the adapter with these `names`.
    """
    program = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("HAProxy isn't installed (Debian's package haproxy)")
    port = free_port()
    environment = {"SERVED_BASE_NAME": "base", "LISTEN": f"127.0.0.1:{port}"}
    for number, server in enumerate(servers, 1):
        environment[f"SERVER_{number}"] = f"127.0.0.1:{server.port}"
    if dedicated is not None:
        environment["DEDICATED_SERVER"] = f"127.0.0.1:{dedicated.port}"
        environment["DEDICATED_NAMES"] = names
    config = ROOT / "deploy" / "haproxy.cfg"
    return Proxy("haproxy", [program, "-db", "-q", "-f", str(config)], port, environment)


def envoy_program() -> Path:
    """Return the path of Envoy, which a package brings."""
    package = importlib.util.find_spec("envoy")
    if package is None or package.origin is None:
        pytest.skip("Envoy isn't installed (requirements/dev.txt)")
    return Path(package.origin).parent / "_bin" / "envoy"


def start_envoy(
    folder: Path,
    servers: Sequence[Server],
    *,
    by_turns: bool = False,
    dedicated: Server | None = None,
    names: str = "",
) -> Proxy:
    """What the chart renders, with the servers' and its own addresses changed.

    `by_turns`: round robin instead of the hash, to compare with. `dedicated`: the dedicated server
    of the adapter with these `names`.
    """
    program = envoy_program()
    given = []
    if dedicated is not None:
        own = {"names": names.split(), "host": "127.0.0.1", "port": dedicated.port}
        given = ["--set-json", f"envoy.dedicated={json.dumps([own])}"]
    rendered = fetch(4).render("--values", str(CHART / "ci" / "cpu-values.yaml"), *given)
    name = "demo-loraplex-envoy"
    (found,) = (m for m in rendered if (m["kind"], m["metadata"]["name"]) == ("ConfigMap", name))
    config = yaml.safe_load(found["data"]["envoy.yaml"])
    port = free_port()
    resources = config["static_resources"]
    listener = resources["listeners"][0]["address"]["socket_address"]
    listener |= {"address": "127.0.0.1", "port_value": port}
    resources["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
        {
            "endpoint": {
                "address": {"socket_address": {"address": "127.0.0.1", "port_value": s.port}}
            }
        }
        for s in servers
    ]
    if by_turns:
        cluster = resources["clusters"][0]
        cluster["lb_policy"] = "ROUND_ROBIN"
        del cluster["common_lb_config"]["consistent_hashing_lb_config"]
    file = folder / "envoy.yaml"
    file.write_text(yaml.safe_dump(config))
    options = ["--concurrency", "1", "--disable-hot-restart", "-l", "error"]
    return Proxy("envoy", [str(program), "-c", str(file), *options], port, {})
