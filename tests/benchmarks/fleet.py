"""Two replicas as an operator runs them: real engines on one PostgreSQL and one S3 server, behind
the proxies that are shipped."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.proxies import Proxy, start_envoy, start_haproxy
from tests.postgres import Postgres, programs
from tests.real_engine.running_server import RunningServer
from tests.s3_server import S3Server

SLOTS, HOST_BUDGET = 4, 6
FLAGS = (
    *("--kv-cache-gib", "1", "--max-loras", str(SLOTS), "--max-cpu-loras", str(HOST_BUDGET)),
    *("--max-lora-rank", "8", "--drain-seconds", "60"),
)
NUM_REPLICAS = 2
START_SECONDS = 280


class Replica:
    """One server that may end and start again, at the same address with the same data folder."""

    def __init__(self, data_dir: Path, database_url: str) -> None:
        """Start it; `wait_until_ready` of its process comes next."""
        self._data_dir, self._database_url = data_dir, database_url
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start a process; returns before it is ready."""
        flags = (*FLAGS, "--database-url", self._database_url, "--origin", "s3://fleet/adapters")
        self.process = RunningServer(self._data_dir, *flags, port=self.port)
        self.port = self.process.port

    @property
    def url(self) -> str:
        """Past the proxies."""
        return self.process.url

    def count(self, metric: str, label: str = "", **labels: str) -> Counter[str]:
        """The sums of a metric's series with these labels, by the value of `label`."""
        found: Counter[str] = Counter()
        text = httpx.get(f"{self.url}/metrics", timeout=60).text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == metric and labels.items() <= sample.labels.items():
                    found[sample.labels.get(label, "")] += int(sample.value)
        return found

    def num_loads(self) -> int:
        """Adapters loaded into its engine since it started."""
        return self.count("loraplex_adapter_load_seconds_count", outcome="ok").total()

    def answered(self) -> Counter[str]:
        """Requests answered since it started, by adapter."""
        endpoint = "/v1/completions"
        return self.count("loraplex_requests_total", "adapter", endpoint=endpoint, code="200")


@dataclass
class Fleet:
    """All parts; `key` is an admin's."""

    postgres: Postgres
    replicas: list[Replica]
    envoy: Proxy
    haproxy: Proxy
    by_turns: Proxy
    """Envoy again, with round robin instead of the hash."""
    key: str

    def num_loads(self) -> int:
        """Adapters loaded into any engine."""
        return sum(replica.num_loads() for replica in self.replicas)

    def answered(self) -> list[Counter[str]]:
        """Requests that each replica has answered, by adapter."""
        return [replica.answered() for replica in self.replicas]


@contextmanager
def started_fleet(folder: Path) -> Iterator[Fleet]:
    """Everything started and ready; nothing of it is left afterwards."""
    installed = programs()
    assert installed is not None, "PostgreSQL isn't installed (Debian's package postgresql)"
    with ExitStack() as stack:
        postgres = Postgres(installed)
        stack.callback(postgres.stop)
        s3 = S3Server()
        stack.callback(s3.stop)
        os.environ.update(s3.environment | {"OMP_NUM_THREADS": "1"})
        database_url = postgres.new_database()
        replicas: list[Replica] = []
        for number in range(NUM_REPLICAS):
            replica = Replica(folder / f"replica{number + 1}", database_url)
            replicas.append(replica)
            stack.callback(replica.process.stop)
            _wait_for_key(replicas[0])
        for replica in replicas:
            replica.process.wait_until_ready(START_SECONDS)
        for name in ("envoy", "haproxy", "by_turns"):
            (folder / name).mkdir()
        envoy = start_envoy(folder / "envoy", replicas)
        haproxy = start_haproxy(folder / "haproxy", replicas)
        by_turns = start_envoy(folder / "by_turns", replicas, by_turns=True)
        for proxy in (envoy, haproxy, by_turns):
            stack.callback(proxy.kill)
            wait_for(proxy)
        yield Fleet(postgres, replicas, envoy, haproxy, by_turns, replicas[0].process.key)


def _wait_for_key(first: Replica) -> None:
    """Until the first replica has made the admin key, so that the others make none."""
    deadline = time.monotonic() + START_SECONDS
    while not (first.process.data_dir / "admin.key").is_file():
        assert time.monotonic() < deadline, first.process.log.read_text()
        time.sleep(0.2)
    time.sleep(1)


def wait_for(proxy: Proxy) -> None:
    """Until it knows a server that is ready."""
    transport = httpx.HTTPTransport(retries=10)
    with httpx.Client(transport=transport, timeout=60) as client:
        for _ in range(600):
            if client.get(f"{proxy.url}/readyz").status_code == 200:
                return
            time.sleep(0.1)
    raise AssertionError("the proxy finds no server")
