"""Upgrades of the release under load, and back: older programs come from the history of git."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.adapter_files import digest_of
from adapters_registry.records.database import connect, open_database
from tests.adapter_recipe import Recipe
from tests.chaos.driver import paused
from tests.chaos.fault import Fault
from tests.chaos.site import ORIGIN, Site
from tests.deploy.proxies import free_port
from tests.deploy.replica import START_SECONDS, Replica
from tests.later_release import migrate_later
from tests.tiny import TINY_BASE

ROOT = Path(__file__).parents[3]
FIRST_PROGRAM = "69bda956"
"""The first commit with a registry; its schema is 0001."""
PROGRAM_BEFORE = "8405e100~1"
"""The last commit with schema 0016."""
DIGESTS_ANSWERED_BY = "f4b0cbb2"
"""The first commit whose fake engine answers with digests. It runs on the program before, too."""
NEW_KEY = """
import sys
from pathlib import Path
from adapters_registry.check.base import BaseSpec
from adapters_registry.content.store import ContentStore
from adapters_registry.registry import Registry
from server.auth import Keys
from tests.tiny import TINY_BASE

base = BaseSpec.from_config("tiny", TINY_BASE, max_rank=8)
registry = Registry(sys.argv[1], ContentStore(Path(sys.argv[2])), base)
print(Keys(registry).create("default", ["admin", "inference"]))
registry.close()
"""
"""Makes the schema, too: so it is the older program's."""


def program_of(commit: str, folder: Path) -> Path:
    """Write the tree of a commit into a folder, and return it."""
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", folder], input=_git("archive", commit), check=True)
    return folder


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout


class Upgraded(Fault):
    name = "release upgraded and rolled back"
    promise = (
        "servers of the release before go on while the schema is brought up to date; no answer "
        "fails but of the server that restarts; an older program refuses a newer schema and "
        "changes nothing; with the backup from before the upgrade it has all that the backup has"
    )
    done = (
        f"two servers of schema 0016's program ({PROGRAM_BEFORE}); `registry migrate`; restarted "
        "one by one on this program; then stopped, the backup restored, the older program again"
    )
    rounds = 3
    seconds = 1.0, 3.0
    known: list[tuple[Any, ...]]

    def open(self, site: Site) -> None:
        self.server = site.postgres()
        self._bucket = site.bucket().environment
        self._old = program_of(PROGRAM_BEFORE, site.folder / "old")
        for name in ("tests/deploy/replica.py", "tests/server/fake_engine.py"):
            (self._old / name).write_bytes(_git("show", f"{DIGESTS_ANSWERED_BY}:{name}"))
        made = subprocess.run(
            [sys.executable, "-c", NEW_KEY, site.url, str(site.folder / "first")],
            cwd=self._old,
            check=True,
            capture_output=True,
            text=True,
        )
        site.key = made.stdout.strip()
        self._ports = {name: free_port() for name in "ab"}
        site.start(lambda name: self._start(site, name, self._old))

    def _start(self, site: Site, name: str, folder: Path) -> Replica:
        content = site.folder / name / "content"
        return Replica(self._ports[name], site.url, content, ORIGIN, self._bucket, folder=folder)

    def inject(self, site: Site) -> None:
        with paused(site.drivers):
            self.backup = self.server.back_up()
            self.known = [driver.model() for driver in site.drivers]
        open_database(site.url).dispose()  # as `loraplex registry migrate` does
        time.sleep(site.random.uniform(2, 4))
        for replica in site.replicas:
            site.wait_until_server_is_well(replica.url)  # older programs on the newer schema
        for number in range(2):
            self._restart(site, number, ROOT)
            site.wait_until_server_is_well(site.replicas[number].url)
            site.places[number].excuse(False)

    def _restart(self, site: Site, number: int, folder: Path) -> None:
        replica = site.replicas[number]
        assert isinstance(replica, Replica)
        site.places[number].excuse(True)
        replica.terminate()
        replica.folder = folder
        replica.start()

    def check(self, site: Site) -> None:
        content = site.folder / "c" / "content"
        refused = Replica(free_port(), site.url, content, ORIGIN, self._bucket, folder=self._old)
        assert refused.process.wait(START_SECONDS) != 0, "an older program took a newer schema"

    def heal(self, site: Site) -> None:
        with paused(site.drivers):
            for number, replica in enumerate(site.replicas):
                assert isinstance(replica, Replica)
                site.places[number].excuse(True)
                replica.terminate()
                replica.folder = self._old
            self.server.restore(self.backup)
            for driver, known in zip(site.drivers, self.known, strict=True):
                driver.go_back_to(known)
            for replica in site.replicas:
                assert isinstance(replica, Replica)
                replica.start()
            site.wait_until_well()


class LaterReleaseRolledBack(Fault):
    name = "later release rolled back, its schema stays"
    promise = (
        "where a migration only adds, the release before runs and starts on the newer schema: no "
        "backup is needed, nothing acknowledged is lost"
    )
    done = "two servers; a later release's migration; each server restarted on this program"
    rounds = 3

    def open(self, site: Site) -> None:
        site.postgres()
        environment = site.bucket().environment
        site.start(lambda name: site.replica(name, environment))

    def inject(self, site: Site) -> None:
        engine = connect(site.url)
        migrate_later(engine)
        engine.dispose()

    def heal(self, site: Site) -> None:
        for replica, place in zip(site.replicas, site.places, strict=True):
            assert isinstance(replica, Replica)
            place.excuse(True)
            assert replica.terminate() == 0
            replica.start()
            site.wait_until_server_is_well(replica.url)
            place.excuse(False)


FIRST_REGISTRATIONS = """
import json, shutil, sys
from functools import partial
from pathlib import Path
from adapters_registry.base import BaseSpec
from adapters_registry.content import ContentStore
from adapters_registry.records import Registry
from server.auth import Keys

url, content, config, *sources = sys.argv[1:]
base = BaseSpec.from_config("tiny", json.loads(config), max_rank=8)
registry = Registry(url, ContentStore(Path(content)), base)
for source in map(Path, sources):
    stage = partial(shutil.copytree, source, dirs_exist_ok=True)
    version, _ = registry.register("default", source.name, "test", stage)
    registry.check(version)
print(json.dumps({a.name: a.live.number for a in registry.catalog.adapters.values()}))
print(Keys(registry).create("default", ["admin", "inference"]))
"""


class FirstReleaseUpgraded(Fault):
    name = "data of the first release"
    promise = (
        "its versions and keys work after the upgrade; the first program refuses the new schema "
        "and changes nothing, and opens a copy from before the upgrade"
    )
    done = (
        f"the first program ({FIRST_PROGRAM}, schema 0001, SQLite) registers three adapters; this "
        "one takes over; stopped, the first program tried on the database and on the copy"
    )
    rounds = 2

    def open(self, site: Site) -> None:
        self._old = program_of(FIRST_PROGRAM, site.folder / "old")
        base = BaseSpec.from_config("tiny", TINY_BASE, max_rank=8)
        self._sources = [Recipe().make(site.folder / f"home{n}", base, seed=n) for n in range(3)]
        self._data, self._copy = site.folder / "data", site.folder / "copy"
        self._data.mkdir()
        made = self._first_program(self._data, *map(str, self._sources))
        assert made.returncode == 0, made.stderr
        site.key = made.stdout.splitlines()[-1]
        shutil.copytree(self._data, self._copy)
        site.url = f"sqlite:///{self._data / 'registry.db'}"
        replica = Replica(free_port(), site.url, self._data / "content")
        site.stack.callback(replica.kill)
        replica.wait_until_ready()
        site.take_in(
            [replica],
            {
                source.name: frozenset({(f"default/{source.name}@1", digest_of(source)[0])})
                for source in self._sources
            },
        )

    def _first_program(self, data: Path, *sources: str) -> subprocess.CompletedProcess[str]:
        url, content = f"sqlite:///{data / 'registry.db'}", str(data / "content")
        arguments = [url, content, json.dumps(TINY_BASE), *sources]
        command = [sys.executable, "-c", FIRST_REGISTRATIONS, *arguments]
        return subprocess.run(command, cwd=self._old, capture_output=True, text=True, check=False)

    def inject(self, site: Site) -> None:
        (replica,), (place,) = site.replicas, site.places
        assert isinstance(replica, Replica)
        place.excuse(True)
        assert replica.terminate() == 0
        refused = self._first_program(self._data)
        assert refused.returncode != 0, "the first program opened the new schema"
        opened = self._first_program(self._copy)
        assert opened.returncode == 0, opened.stderr
        known = json.loads(opened.stdout.splitlines()[0])
        assert known == {source.name: 1 for source in self._sources}

    def heal(self, site: Site) -> None:
        (replica,) = site.replicas
        assert isinstance(replica, Replica)
        replica.start()
