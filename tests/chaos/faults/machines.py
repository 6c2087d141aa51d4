"""Faults of servers' machines: processes killed, disks full, clocks that jump."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

from tests.chaos.fault import Fault
from tests.chaos.site import ORIGIN, Site
from tests.deploy.proxies import free_port
from tests.deploy.replica import Replica


class ServersKilled(Fault):
    name = "servers killed at random"
    promise = (
        "what was acknowledged is there, once; the other server goes on; only answers of the "
        "killed one fail"
    )
    done = "one of two servers, or both, get SIGKILL at a random moment and start again"
    rounds = 300
    seconds = 0.0, 1.0

    def open(self, site: Site) -> None:
        site.postgres()
        environment = site.bucket().environment
        self._killed: list[Replica] = []
        site.start(lambda name: site.replica(name, environment))

    def inject(self, site: Site) -> None:
        servers = [each for each in site.replicas if isinstance(each, Replica)]
        self._killed = site.random.sample(servers, site.random.choice([1, 1, 1, 2]))
        for replica in self._killed:
            site.places[site.replicas.index(replica)].excuse(True)
            replica.kill()

    def heal(self, site: Site) -> None:
        for replica in self._killed:
            replica.start()


class DiskFull(Fault):
    name = "disk full"
    promise = (
        "no answer of a version that is on disk fails; registrations get 507, other changes 503; "
        "what was acknowledged is there"
    )
    done = "one server on SQLite, all of it on a disk of 48 MB that is filled to the last byte"
    seconds = 1.0, 4.0

    def open(self, site: Site) -> None:
        disk = site.folder / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "chaos", disk], check=True)
        site.stack.callback(lambda: subprocess.run(["umount", "-l", disk], check=True))
        self._balloon = disk / "balloon"
        site.url = f"sqlite:///{disk / 'registry.db'}"

        def start(name: str) -> Replica:
            return Replica(free_port(), site.url, disk / name / "content")

        site.start(start, ("a",))

    def inject(self, site: Site) -> None:
        fill(self._balloon)

    def check(self, site: Site) -> None:
        site.refuses_registrations(site.replicas[0].url)

    def heal(self, site: Site) -> None:
        self._balloon.unlink()


def fill(balloon: Path) -> None:
    """Write until the disk takes no more byte."""
    with balloon.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


LIBFAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


class ClockJumps(Fault):
    name = "clock jumps"
    promise = "no answer fails, nothing acknowledged is lost, nothing is collected too soon"
    done = "one server's clock jumps by an hour or two days, forward or back, and back again"
    seconds = 1.0, 4.0
    rounds = 12

    def open(self, site: Site) -> None:
        assert LIBFAKETIME.exists(), "libfaketime isn't installed (Debian's package libfaketime)"
        site.postgres()
        environment = site.bucket().environment
        self._round = 0

        def start(name: str) -> Replica:
            clock = self._clock(site, name)
            clock.write_text("+0")
            faked = {
                "LD_PRELOAD": str(LIBFAKETIME),
                "FAKETIME_TIMESTAMP_FILE": str(clock),
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "FAKETIME_DONT_RESET": "1",
            }
            content = site.folder / name / "content"
            return Replica(free_port(), site.url, content, ORIGIN, {**environment, **faked})

        site.start(start)

    def _clock(self, site: Site, name: str) -> Path:
        return site.folder / f"clock-{name}"

    def inject(self, site: Site) -> None:
        jump = ("+3600", "-3600", "+172800", "-172800")[self._round % 4]
        self._clock(site, "ab"[self._round // 4 % 2]).write_text(jump)
        self._round += 1

    def heal(self, site: Site) -> None:
        for name in "ab":
            self._clock(site, name).write_text("+0")
