"""Changes an adapter at random, and compares what servers say with what they have acknowledged.

Each adapter has a driver that registers, promotes, rolls back and retires, and keeps a model of
what was acknowledged. Meanwhile a fault is at work. After every answer the driver compares what a
server says with its model, and sometimes asks a version for its content.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.adapter_files import ADAPTER_FILES, digest_of
from tests.adapter_recipe import Recipe
from tests.chaos.answers import Refused, ask
from tests.deploy.replica import START_SECONDS
from tests.tiny import TINY_BASE

SECONDS = 60
"""How long one request may take, and the end of everything."""
FOLLOWS_SECONDS = 15
"""How long a busy server's catalog may be behind the database."""
ENDED, BAD_RANK = ("retired", "rejected"), 9


@dataclass
class Known:
    """What a driver knows of one version."""

    digest: str
    good: bool
    promote: bool
    state: str = "pending"


@dataclass
class Counts:
    """What was done, for the report."""

    operations: dict[str, int] = field(default_factory=dict)
    retries: int = 0
    comparisons: int = 0
    answers: int = 0
    """Of versions that were asked for their content."""
    refused: int = 0

    def add(self, name: str) -> None:
        self.operations[name] = self.operations.get(name, 0) + 1


class Driver:
    """Works on one adapter through either server; raises `AssertionError` at the first wrong."""

    def __init__(
        self, name: str, key: str, urls: list[str], folder: Path, seed: int, until: float
    ) -> None:
        self.path, self.name = f"/admin/adapters/default/{name}", name
        self.random, self.until = random.Random(seed), until
        self.counts = Counts()
        self.versions: dict[int, Known] = {}
        self.live: int | None = None
        """What an operator, or a verdict that was seen, has pointed it to last."""
        self.perhaps: int | None = None
        """Where an operator pointed it, if that was a move only in case a verdict was not seen."""
        self.moved_at = 0
        """The last version that was registered when an operator moved `live`."""
        self.working = threading.Lock()
        """Is held while a change is under way. Whoever holds it pauses the driver."""
        self.error: BaseException | None = None
        self._urls, self._folder = urls, folder
        self._http = httpx.Client(headers={"Authorization": f"Bearer {key}"}, timeout=SECONDS)
        self._base = BaseSpec.from_config("tiny", TINY_BASE, max_rank=8)

    def run(self) -> None:
        """Work until time is up. What goes wrong is kept in `error`, and ends the work."""
        try:
            while time.monotonic() < self.until:
                with self.working:
                    self.work()
                time.sleep(self.random.uniform(0, 0.3))
        except BaseException as error:
            self.error = error

    def work(self) -> None:
        """Make one change, and compare."""
        ready = [n for n, version in self.versions.items() if version.state == "ready"]
        operations = [self.register, self.register, self.promote, self.roll_back, self.retire]
        operation = self.random.choice([*operations, self.ask] if ready else [self.register])
        operation()
        self.compare(self.random.choice(self._urls))

    def model(self) -> tuple[Any, ...]:
        """Return a copy of all that is known, for `go_back_to`."""
        return deepcopy((self.versions, self.live, self.perhaps, self.moved_at))

    def go_back_to(self, model: tuple[Any, ...]) -> None:
        """Forget what was acknowledged since, as a restored backup does."""
        self.versions, self.live, self.perhaps, self.moved_at = deepcopy(model)

    def ask(self) -> None:
        """Ask a version that is ready for its content. A server may refuse while a fault lasts."""
        ready = [n for n, version in self.versions.items() if version.state == "ready"]
        number = self.random.choice(ready)
        try:
            self.check_content(self.random.choice(self._urls), number)
        except Refused:
            self.counts.refused += 1

    def check_content(self, url: str, number: int) -> None:
        """Raise `AssertionError` if another content answers, `Refused` if none does."""
        name = f"{self.name}@{number}"
        said = ask(self._http, url, name)
        expected = {(f"default/{name}", self.versions[number].digest)}
        assert said == expected, f"wrong answer: {name} is {expected}, and {set(said)} answered"
        self.counts.answers += 1

    def register(self) -> None:
        good, promote = self.random.random() < 0.8, self.random.random() < 0.5
        seed = self.random.randrange(1 << 30)
        recipe = Recipe() if good else Recipe(rank=BAD_RANK)
        directory = recipe.make(self._folder / uuid.uuid4().hex, self._base, seed)
        files = [("files", (name, (directory / name).read_bytes())) for name in ADAPTER_FILES]
        form = {"name": self.name, "promote": str(promote).lower()}
        answer = self.until_answered("POST", "/admin/adapters", data=form, files=files)
        number = len(self.versions) + 1
        if answer.status_code == 422:  # a repetition, and the verdict is there
            assert not good, answer.text
        else:
            assert answer.status_code in (200, 201, 202), answer.text
            assert answer.json()["version"] == number, "one registration, one version"
        self.versions[number] = Known(digest_of(directory)[0], good, promote)
        self.counts.add("register")

    def promote(self) -> None:
        ready = [n for n, version in self.versions.items() if version.state == "ready"]
        number = self.random.choice(ready)
        targets = {"targets": [{"version": number, "weight": 100}]}
        answer = self.until_answered("PUT", f"{self.path}/aliases/live", json=targets)
        assert answer.status_code == 200, answer.text
        self.moved(answer)
        assert self.live == number
        self.counts.add("promote")

    def roll_back(self) -> None:
        answer = self.until_answered("POST", f"{self.path}/rollback")
        if answer.status_code == 409:  # there was none before, or it was retired
            return
        assert answer.status_code == 200, answer.text
        self.moved(answer, is_move=True)
        self.counts.add("roll back")

    def retire(self) -> None:
        old = [n for n, v in self.versions.items() if v.state == "ready" and n != self.live]
        if not old:
            return
        number = self.random.choice(old)
        answer = self.until_answered("DELETE", f"{self.path}/versions/{number}")
        if answer.status_code == 409:  # a verdict has made it live meanwhile
            return
        assert answer.status_code == 204, answer.text
        self.versions[number].state = "retired"
        self.counts.add("retire")

    def moved(self, answer: httpx.Response, *, is_move: bool = False) -> None:
        """From here only versions that are registered later may be promoted by their verdict.

        Pointing it to where it points already is no move, and cancels nothing.
        """
        (target,) = answer.json()["targets"]
        if is_move or target["version"] != self.live:
            self.live, self.moved_at = target["version"], len(self.versions)
            self.perhaps = None
        else:
            self.perhaps = self.live

    def compare(self, url: str) -> None:
        """Compare all that is known with what a server says, if it answers."""
        try:
            answer = self._http.get(f"{url}{self.path}", params={"limit": 1000})
        except httpx.TransportError:
            return
        if answer.status_code >= 500 or (answer.status_code == 404 and self.live is None):
            return
        assert answer.status_code == 200, answer.text
        said = answer.json()
        states = {version["version"]: version["state"] for version in said["versions"]}
        assert states.keys() == self.versions.keys(), "nothing acknowledged is lost or doubled"
        for version in said["versions"]:
            self.check_state(version["version"], version["state"])
            known = self.versions[version["version"]]
            assert known.digest == version["digest"].removeprefix("sha256:"), "another content"
        self.check_live(said)
        self.counts.comparisons += 1

    def check_state(self, number: int, state: str) -> None:
        known = self.versions[number]
        allowed: tuple[str, ...] = ("pending", "checking", "ready" if known.good else "rejected")
        if known.state in ("ready", *ENDED):
            allowed = (known.state,)
        what = f"{self.name}@{number} was {known.state} and is {state}"
        assert state in allowed, what
        known.state = state

    def check_live(self, said: dict[str, Any]) -> None:
        """`live` is what the last mover said, or a later version that was to be promoted."""
        live = live_in(said)
        if live == self.live:
            return
        if live in self.promotable():
            self.live = live
            return
        # The catalog of the other server follows: within a second, or later on a busy machine.
        deadline = time.monotonic() + FOLLOWS_SECONDS
        while (target := self.live_of_any()) not in (self.live, self.perhaps, *self.promotable()):
            assert time.monotonic() < deadline, (
                f"live of {self.name} is {target} without cause: it was {self.live}, moved at "
                f"{self.moved_at}; {self.versions}; the trail: {self.trail()}"
            )
            time.sleep(0.5)
        self.live = target

    def trail(self) -> list[str]:
        """Return the newest changes of `live`, for a failure's message."""
        query = {"subject": f"default/{self.name}@live", "limit": "20"}
        entries = self.until_answered("GET", "/admin/audit?" + urlencode(query)).json()["data"]
        return [f"{e['actor']} {e['action']} {e['before']} {e['after']}" for e in entries]

    def live_of_any(self) -> int | None:
        """Return what either server says that `live` is."""
        return live_in(self.until_answered("GET", self.path).json())

    def promotable(self) -> list[int]:
        """Return the versions whose verdict may have moved `live` since it was seen last."""
        first = self.live is None
        return [
            number
            for number, version in self.versions.items()
            if version.good
            and (first or (version.promote and number > max(self.moved_at, self.live or 0)))
        ]

    def until_answered(self, method: str, path: str, **body: Any) -> httpx.Response:
        """Send a request to either server until one answers; repetitions have the same key."""
        headers = {"Idempotency-Key": uuid.uuid4().hex} if method == "POST" else {}
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            url = self.random.choice(self._urls)
            try:
                answer = self._http.request(method, url + path, headers=headers, **body)
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code < 500 and answer.status_code != 429:
                return answer
            self.counts.retries += 1
            time.sleep(0.2)
        raise AssertionError(f"no server answers {method} {path}: {answer and answer.text}")

    def settle(self) -> None:
        """When all is well again: every version has its verdict, and every server agrees."""
        deadline = time.monotonic() + 2 * SECONDS
        while any(version.state in ("pending", "checking") for version in self.versions.values()):
            assert time.monotonic() < deadline, f"versions of {self.name} have no verdict"
            self.compare(self._urls[0])
            time.sleep(0.2)
        time.sleep(1.5)
        for url in self._urls:
            self.compare(url)
            for number, version in self.versions.items():
                if version.state == "ready":
                    self.check_content_soon(url, number)

    def check_content_soon(self, url: str, number: int) -> None:
        """Do it as soon as the server answers: after failures it pauses before it loads again."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            with suppress(Refused):
                self.check_content(url, number)
                return
            time.sleep(0.5)
        raise AssertionError(f"{self.name}@{number} at {url} gives no answer")


@contextmanager
def paused(drivers: list[Driver]) -> Iterator[None]:
    """Let no change be under way within the context."""
    with ExitStack() as stack:
        for driver in drivers:
            stack.enter_context(driver.working)
        yield


def live_in(said: dict[str, Any]) -> int | None:
    """Return the version to which `live` points in what a server says of an adapter."""
    targets = [alias["targets"] for alias in said["aliases"] if alias["alias"] == "live"]
    return int(targets[0][0]["version"]) if targets else None
