"""A real Prometheus that scrapes one server: `python -m tests.helm.prometheus URL`.

The command tries every expression of the chart's rules, dashboard and autoscaler on the server at
URL, and fails if Prometheus refuses one, or if one names a metric that the server doesn't have.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.helm.programs import CHART, Helm, fetch

RULES = CHART / "files" / "rules.yaml"
DASHBOARD = json.loads((CHART / "files" / "dashboard.json").read_text())
LABELS = {"namespace": "models", "service": "demo-loraplex-servers", "pod": "demo-loraplex-0"}
"""What a ServiceMonitor adds to each series."""
START_SECONDS = 60


def expressions(helm: Helm) -> Iterator[str]:
    """Yield every expression of the chart: of rules, dashboard and autoscaler."""
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for variable in DASHBOARD["templating"]["list"]:
        if found := re.fullmatch(r"label_values\((.+), \w+\)", variable["query"]):
            yield found[1]
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"].replace("$service", ".*") for target in panel["targets"])
    for manifest in helm.render("--values", str(CHART / "ci" / "gpu-values.yaml")):
        if manifest["kind"] == "ScaledObject":
            yield from (trigger["metadata"]["query"] for trigger in manifest["spec"]["triggers"])


def metrics_of_vllm() -> set[str]:
    """Return the names of vLLM's metrics as it declares them, so without `_total`."""
    vllm = importlib.util.find_spec("vllm")  # which importing would take seconds
    assert vllm is not None
    assert vllm.origin is not None
    declarations = Path(vllm.origin).parent / "v1" / "metrics" / "loggers.py"
    return set(re.findall(r'name="(vllm:\w+)"', declarations.read_text()))


def names_in(expression: str) -> set[str]:
    """Return the metrics that an expression names."""
    return set(re.findall(r"\b((?:loraplex_|vllm:)\w+)", expression))


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus with one target."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series that an expression gives now.

        Raises:
            AssertionError: Prometheus refuses it; the message has its reason.
        """
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=30)
        body = answer.json()
        assert body["status"] == "success", f"{expression}: {body.get('error')}"
        found: list[dict[str, Any]] = body["data"]["result"]
        return found

    def names(self) -> set[str]:
        """Return the names of all series that were scraped."""
        answer = httpx.get(f"{self.url}/api/v1/label/__name__/values", timeout=30)
        return set(answer.json()["data"])

    def wait_for_scrapes(self, number: int = 2) -> None:
        """Wait until the target was scraped so often: a rate needs two values."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            found = self.query("count_over_time(up[1h])")
            if found and float(found[0]["value"][1]) >= number:
                return
            time.sleep(0.2)
        raise AssertionError("Prometheus did not scrape the server")


@contextmanager
def prometheus(target: str, token: str = "") -> Iterator[Prometheus]:
    """Start Prometheus; it scrapes `host:port` once a second until the context ends."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Prometheus isn't installed (Debian's package prometheus)")
    static = {"targets": [target], "labels": LABELS}
    job: dict[str, Any] = {"job_name": "loraplex", "static_configs": [static]}
    if token:
        job["authorization"] = {"credentials": token}
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}
    config["rule_files"] = [str(RULES)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prometheus.yml"
        file.write_text(yaml.safe_dump(config))
        command = [program, f"--config.file={file}", f"--web.listen-address={address}"]
        command += [f"--storage.tsdb.path={folder}/data", "--log.level=error"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            _wait_until_ready(f"http://{address}", process)
            yield Prometheus(f"http://{address}")
        finally:
            process.terminate()
            process.wait(30)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/-/ready", timeout=5).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise AssertionError("Prometheus did not start")


def main() -> int:
    """Print each expression with the number of series that it gives; return the exit code."""
    url = httpx.URL(sys.argv[1])
    failures = 0
    with prometheus(f"{url.host}:{url.port}") as running:
        running.wait_for_scrapes(30)
        known = running.names()
        for expression in dict.fromkeys(expressions(fetch(4))):
            missing = names_in(expression) - known
            failures += bool(missing)
            told = f"NO METRIC {', '.join(sorted(missing))}" if missing else ""
            print(
                f"{len(running.query(expression)):4} series  {' '.join(expression.split())} {told}"
            )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
