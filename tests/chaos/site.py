"""Servers, their database and their bucket, with clients at work: what faults are made in."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import httpx

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.adapter_files import digest_of
from adapters_registry.content.store import ContentStore
from adapters_registry.registry import Registry
from server.auth import Keys
from tests.adapter_recipe import Recipe
from tests.chaos.answers import Ask, Refused, Said, ask, ask_for_text
from tests.chaos.driver import Driver
from tests.chaos.forked import ForkedReplica
from tests.chaos.readers import Answers, Place, Reader
from tests.deploy.proxies import free_port
from tests.deploy.replica import Replica
from tests.postgres import Postgres, programs
from tests.s3_server import S3Server
from tests.tiny import TINY_BASE

if TYPE_CHECKING:
    from tests.real_engine.running_server import RunningServer

NUM_DRIVERS, NUM_READERS, NUM_READ = 3, 4, 3
WELL_SECONDS = 180.0
"""The end of everything: a server that isn't well by then never will be."""
ORIGIN = "s3://test/chaos"

StartReplica = Callable[[str], Replica]


class Running(Protocol):
    """A server of ours."""

    url: str


class Site:
    """What a fault finds. A fault's `open` fills it; the runner closes `stack`."""

    def __init__(self, folder: Path, stack: ExitStack, seed: int) -> None:
        self.folder, self.stack, self.seed = folder, stack, seed
        self.random = random.Random(seed)
        self.url, self.key = "", ""
        """Of the database, and an admin's."""
        self.replicas: list[Running] = []
        self.places: list[Place] = []
        """Where readers ask; by default each replica."""
        self.drivers: list[Driver] = []
        self._right: dict[str, Said] = {}
        self._ask: Ask = ask
        self._readers: list[Reader] = []
        self._http = httpx.Client(timeout=30)

    # --- parts, for a fault's `open` ---

    def postgres(self, *, addresses: tuple[str, ...] = ()) -> Postgres:
        """Start a PostgreSQL and make it the site's database."""
        folder = programs()
        assert folder is not None, "PostgreSQL isn't installed (Debian's package postgresql)"
        server = Postgres(folder, addresses=addresses)
        self.stack.callback(server.stop)
        self.url = server.new_database()
        return server

    def bucket(self) -> S3Server:
        """Start an S3 server."""
        server = S3Server()
        self.stack.callback(server.stop)
        return server

    def replica(
        self, name: str, environment: Mapping[str, str] | None = None, origin: str = ORIGIN
    ) -> Replica:
        """Start a server of ours with a folder of its own."""
        content = self.folder / name / "content"
        return ForkedReplica(free_port(), self.url, content, origin, environment)

    def start(self, start: StartReplica, names: tuple[str, ...] = ("a", "b")) -> None:
        """Start servers, register what readers ask for, and wait until all is well."""
        base = BaseSpec.from_config("tiny", TINY_BASE, max_rank=8)
        self.key = self.key or new_key(self.url, self.folder / "first")
        self._http.headers["Authorization"] = f"Bearer {self.key}"
        started = [start(name) for name in names]
        for replica in started:
            self.stack.callback(replica.kill)
        for replica in started:
            replica.wait_until_ready()
        right = {}
        for number in range(NUM_READ):
            name = f"home{number}"
            files = Recipe().make(self.folder / name, base, number)
            parts = [("files", (file.name, file.read_bytes())) for file in files.iterdir()]
            self._register(started[0].url, data={"name": name}, files=parts)
            right[name] = frozenset({(f"default/{name}@1", digest_of(files)[0])})
        self.take_in(started, right)

    def start_real(
        self, server: RunningServer, sources: dict[str, Path], texts: dict[str, str]
    ) -> None:
        """Take in a server with a real engine; readers compare whole answers with `texts`."""
        server.wait_until_ready()
        self.key = server.key
        self._http.headers["Authorization"] = f"Bearer {self.key}"
        for name, source in sources.items():
            self._register(server.url, json={"name": name, "source": str(source)})
        self._ask = ask_for_text
        right = {name: frozenset({(f"default/{name}@1", text)}) for name, text in texts.items()}
        self.take_in([server], right)

    def take_in(self, servers: Sequence[Running], right: dict[str, Said]) -> None:
        """Take in servers that are ready, and what readers may ask for with the right answers."""
        self._http.headers["Authorization"] = f"Bearer {self.key}"
        self.replicas, self._right = list(servers), right
        self.places = self.places or [Place(server.url) for server in servers]
        self.wait_until_well()

    def _register(self, url: str, **request: Any) -> None:
        answer = self._http.post(f"{url}/admin/adapters?wait=true", **request)
        assert answer.status_code == 201, answer.text

    # --- clients ---

    @contextmanager
    def under_load(self, *, drivers: bool = True) -> Iterator[None]:
        """Have clients change and ask within the context; afterwards the drivers have settled."""
        urls = [replica.url for replica in self.replicas]
        self.drivers = [
            Driver(f"changed{n}", self.key, urls, self.folder, self.seed + n, float("inf"))
            for n in range(NUM_DRIVERS if drivers else 0)
        ]
        self._readers = [
            Reader(self.places, self._right, self._ask, self.key) for _ in range(NUM_READERS)
        ]
        threads = [threading.Thread(target=driver.run, daemon=True) for driver in self.drivers]
        for thread in (*self._readers, *threads):
            thread.start()
        try:
            yield
        finally:
            for driver in self.drivers:
                driver.until = 0.0
            for reader in self._readers:
                reader.ended = True
            for thread in (*threads, *self._readers):
                thread.join()
        for driver in self.drivers:
            if driver.error is None:
                try:
                    driver.settle()
                except AssertionError as error:
                    driver.error = error

    @property
    def answers(self) -> Answers:
        """What readers were answered, up to now."""
        return reduce(add, (reader.answers for reader in self._readers), Answers())

    # --- how it is ---

    def wait_until_well(self) -> None:
        """Wait until every server answers for every adapter, and acknowledges a change."""
        for replica in self.replicas:
            self.wait_until_server_is_well(replica.url)

    def wait_until_server_is_well(self, url: str) -> None:
        """Wait until one server does."""
        deadline = time.monotonic() + WELL_SECONDS
        while wrong := self._what_is_wrong(url):
            assert time.monotonic() < deadline, f"{url} is not well: {wrong}"
            time.sleep(0.1)

    def _what_is_wrong(self, url: str) -> str:
        path = f"{url}/admin/adapters/default/home0/aliases/well"
        try:
            if (ready := self._http.get(f"{url}/readyz")).status_code != 200:
                return ready.text
            changed = self._http.put(path, json={"targets": [{"version": 1, "weight": 100}]})
            for name in self._right:
                self._ask(self._http, url, name)
        except (httpx.HTTPError, Refused) as error:
            return repr(error)
        return "" if changed.status_code == 200 else changed.text

    def refuses_changes(self, url: str) -> None:
        """Raise `AssertionError` unless a server answers a change with 503 in its usual form."""
        path = f"{url}/admin/adapters/default/home0/aliases/well"
        answer = self._http.put(path, json={"targets": [{"version": 1, "weight": 100}]})
        assert answer.status_code in (503, 507), f"{answer.status_code} {answer.text[:300]}"
        assert "message" in answer.json()["error"]

    def refuses_registrations(self, url: str) -> None:
        """Raise `AssertionError` unless a server refuses new files for want of space."""
        base = BaseSpec.from_config("tiny", TINY_BASE, max_rank=8)
        seed = self.random.randrange(1 << 30)
        files = Recipe().make(self.folder / uuid.uuid4().hex, base, seed)
        parts = [("files", (file.name, file.read_bytes())) for file in files.iterdir()]
        answer = self._http.post(f"{url}/admin/adapters", data={"name": "large"}, files=parts)
        assert answer.status_code == 507, f"{answer.status_code} {answer.text[:300]}"
        assert answer.json()["error"]["code"] == "insufficient_storage"

    def wait_until_found(self, url: str) -> None:
        """Wait until a proxy passes requests on."""
        deadline = time.monotonic() + WELL_SECONDS
        while True:
            try:
                if self._http.get(f"{url}/readyz").status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            assert time.monotonic() < deadline, f"the proxy at {url} finds no server"
            time.sleep(0.1)


def new_key(url: str, folder: Path) -> str:
    """Make an admin's key, and with it the database's schema."""
    base = BaseSpec.from_config("tiny", TINY_BASE, max_rank=8)
    registry = Registry(url, ContentStore(folder), base)
    key = Keys(registry).create("default", ["admin", "inference"])
    registry.close()
    return key
