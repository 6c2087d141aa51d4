"""A PostgreSQL server of our own for the tests that run on it; Debian's package `postgresql`."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg

from adapters_registry.records.database import open_database

MIGRATED = "migrated"
"""The name of the database that others are copies of."""
SERVER_USER = "postgres"
"""The server refuses to run as root."""
LOOPBACK = "127.0.0.1"


def programs() -> Path | None:
    """Where the server's programs are, or None if it isn't installed."""
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which("initdb")
    candidates += [Path(found).parent] if found else []
    return next((folder for folder in candidates if (folder / "pg_ctl").exists()), None)


class Postgres:
    """One server on a free port of the loopback interface; nothing of it outlives `stop`."""

    def __init__(
        self,
        folder: Path,
        *,
        standby_of: Postgres | None = None,
        port: int = 0,
        addresses: tuple[str, ...] = (),
    ) -> None:
        """`standby_of`: follow that server by streaming replication.

        `port`: instead of any free one. `addresses`: of this machine, at which it listens too and
        lets everybody in.
        """
        self._programs = folder
        self._directory = Path(tempfile.mkdtemp(prefix="loraplex-postgres-"))
        self._user = SERVER_USER if os.getuid() == 0 else None
        if self._user:
            shutil.chown(self._directory, self._user)
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            self.port = port or probe.getsockname()[1]
        self._count, self._is_migrated = 0, False
        self._addresses = (LOOPBACK, *addresses)
        self._data = self._directory / "data"
        if standby_of:
            standby_of.copy_to(self, "-R")
            self.set("synchronous_standby_names", "''")
        else:
            self._run("initdb", "-A", "trust", "-U", "postgres", "--no-sync", "-D", self._data)
        if addresses:
            with (self._data / "pg_hba.conf").open("a") as rules:
                rules.writelines(f"host all all {each}/24 trust\n" for each in addresses)
        self.start()

    def start(self) -> None:
        """Start, at first and after `halt` or `kill`; returns when connections are taken."""
        listens = ",".join(self._addresses)
        options = f"-p {self.port} -k {self._directory} -c listen_addresses={listens}"
        log = self._directory / "log"
        arguments = ("-w", "-D", self._data, "-l", log, "-o", f"{options} -c fsync=off")
        self._run("pg_ctl", *arguments, "start")

    def halt(self) -> None:
        """Stop as an administrator does: connections end, what is committed stays."""
        self._run("pg_ctl", "-D", self._data, "-m", "fast", "stop")

    def kill(self) -> None:
        """Kill all of its processes at once."""
        processes = self._processes()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=30)
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def freeze(self) -> None:
        """Stop all of its processes: the machine takes connections, and nobody answers."""
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let its processes go on."""
        for process in self._processes():
            process.send_signal(signal.SIGCONT)

    def promote(self) -> None:
        """Make a standby the server that takes changes; returns when it does."""
        self._run("pg_ctl", "-w", "-D", self._data, "promote")

    def wait_for_standby(self) -> None:
        """Acknowledge, from here on, only what the standby has, too."""
        self.set("synchronous_standby_names", "'*'")
        self._run("pg_ctl", "-D", self._data, "reload")

    def set(self, name: str, value: str) -> None:
        """Change the configuration. A running server has to be told to read it again."""
        with (self._data / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"{name} = {value}\n")

    def copy_to(self, other: Postgres, *options: str) -> None:
        """Copy all databases, as they are now, to where another server will have its own."""
        source = ("-h", LOOPBACK, "-p", self.port, "-U", "postgres")
        arguments = ("-D", other._data, "--checkpoint=fast", "--no-sync", *source, *options)
        self._run("pg_basebackup", *arguments)

    def back_up(self) -> Path:
        """Copy all databases, as they are now, into a folder for `restore`."""
        folder = self._directory / f"backup{len(list(self._directory.glob('backup*')))}"
        source = ("-h", LOOPBACK, "-p", self.port, "-U", "postgres")
        self._run("pg_basebackup", "-D", folder, "--checkpoint=fast", "--no-sync", *source)
        return folder

    def restore(self, backup: Path) -> None:
        """Put all databases back to what they were at `back_up`, and start again."""
        self.halt()
        shutil.rmtree(self._data)
        shutil.copytree(backup, self._data, copy_function=shutil.copy2)
        if self._user:
            subprocess.run(["chown", "-R", self._user, self._data], check=True)
        self._data.chmod(0o700)
        self.start()

    def new_database(self) -> str:
        """The URL of a new database without tables."""
        self._count += 1
        return self._create(f"test{self._count}", "template1")

    def migrated_database(self) -> str:
        """The URL of a new, empty database of the newest schema: a copy, which is soon made."""
        if not self._is_migrated:
            open_database(self._create(MIGRATED, "template1")).dispose()
            self._is_migrated = True
        self._count += 1
        return self._create(f"test{self._count}", MIGRATED)

    def _create(self, name: str, template: str) -> str:
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return f"postgresql://postgres@{LOOPBACK}:{self.port}/{name}"

    @contextmanager
    def away(self, url: str) -> Iterator[None]:
        """Take a database from its clients: their connections end, no new ones begin."""
        name = url.rpartition("/")[2]
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
            )
            try:
                yield
            finally:
                connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    def stop(self) -> None:
        """End it and remove all that it wrote, in whatever state it is."""
        self.thaw()
        if self._processes():
            self._run("pg_ctl", "-D", self._data, "-m", "immediate", "stop")
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def _server(self) -> str:
        return f"host={LOOPBACK} port={self.port} user=postgres dbname=postgres"

    def _processes(self) -> list[psutil.Process]:
        """The server's process and, after it, those of its connections."""
        try:
            pid = int((self._data / "postmaster.pid").read_text().split("\n", 1)[0])
            server = psutil.Process(pid)
            return [server, *server.children()]
        except (FileNotFoundError, psutil.NoSuchProcess):
            return []

    def _run(self, program: str, *arguments: object) -> None:
        command = [str(self._programs / program), *map(str, arguments)]
        subprocess.run(
            command, check=True, user=self._user, stdout=subprocess.DEVNULL, cwd=self._directory
        )
