"""Faults of PostgreSQL: killed, frozen, replaced by its standby, put back to a backup."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.chaos.driver import paused
from tests.chaos.fault import Fault
from tests.chaos.site import Site
from tests.postgres import Postgres, programs

NO_ANSWER_FAILS = "no answer fails; changes are refused with 503; no acknowledged change is lost"


class _DatabaseFault(Fault):
    """Two servers on a PostgreSQL and a bucket."""

    server: Postgres

    def open(self, site: Site) -> None:
        self.server, environment = site.postgres(), site.bucket().environment
        site.start(lambda name: site.replica(name, environment))

    def check(self, site: Site) -> None:
        for replica in site.replicas:
            site.refuses_changes(replica.url)


class DatabaseKilled(_DatabaseFault):
    name = "PostgreSQL killed"
    promise = NO_ANSWER_FAILS
    done = "SIGKILL to all of its processes; started again"

    def inject(self, site: Site) -> None:
        self.server.kill()

    def heal(self, site: Site) -> None:
        self.server.start()


class DatabaseFrozen(_DatabaseFault):
    name = "PostgreSQL frozen"
    promise = NO_ANSWER_FAILS
    done = "SIGSTOP to all of its processes, as a disk that hangs does, for up to 40 s; SIGCONT"
    rounds = 5
    seconds = 5.0, 40.0

    def inject(self, site: Site) -> None:
        self.server.freeze()

    def check(self, site: Site) -> None:
        """Changes wait; a test of the registry says for how long."""

    def heal(self, site: Site) -> None:
        self.server.thaw()


class Failover(Fault):
    name = "PostgreSQL fails over"
    promise = f"{NO_ANSWER_FAILS}, if replication is synchronous; servers find the new primary"
    done = (
        "the primary gets SIGKILL or SIGSTOP in turn; its synchronous standby (streaming "
        "replication) is promoted; the URL has both hosts"
    )
    primary: Postgres
    standby: Postgres

    def open(self, site: Site) -> None:
        self.primary, environment = site.postgres(), site.bucket().environment
        self._round = 0
        self._follow(site)
        both = f"127.0.0.1:{self.primary.port},127.0.0.1:{self.standby.port}"
        site.url = site.url.replace(f"127.0.0.1:{self.primary.port}", both)
        site.start(lambda name: site.replica(name, environment))

    def _follow(self, site: Site, port: int = 0) -> None:
        folder = programs()
        assert folder
        self.standby = Postgres(folder, standby_of=self.primary, port=port)
        site.stack.callback(self.standby.stop)
        self.primary.wait_for_standby()

    def inject(self, site: Site) -> None:
        self._round += 1
        if self._round % 2:
            self.primary.kill()
        else:
            self.primary.freeze()

    def heal(self, site: Site) -> None:
        self.standby.promote()

    def after(self, site: Site) -> None:
        """The old primary is fenced off and replaced by a standby of the new one."""
        self.primary.kill()
        port, self.primary = self.primary.port, self.standby
        self._follow(site, port)


class BackupRestored(_DatabaseFault):
    name = "PostgreSQL restored from a backup"
    promise = (
        "what was acknowledged since the backup is gone on all servers, all else is there; numbers "
        "that are given again never answer with the earlier content"
    )
    done = "servers run on; changes for some seconds after the backup; restored; more changes"
    backup: Path
    known: list[tuple[Any, ...]]

    def inject(self, site: Site) -> None:
        with paused(site.drivers):
            self.backup = self.server.back_up()
            self.known = [driver.model() for driver in site.drivers]
        time.sleep(site.random.uniform(2, 5))

    def check(self, site: Site) -> None:
        """The database is there until it is restored."""

    def heal(self, site: Site) -> None:
        with paused(site.drivers):
            for place in site.places:
                place.excuse(True)  # the engines are restarted
            self.server.restore(self.backup)
            for driver, known in zip(site.drivers, self.known, strict=True):
                driver.go_back_to(known)
            site.wait_until_well()
