"""A PostgreSQL server of our own for the tests that run on it; Debian's package `postgresql`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

SERVER_USER = "postgres"
"""The server refuses to run as root."""


def programs() -> Path | None:
    """Where the server's programs are, or None if it isn't installed."""
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which("initdb")
    candidates += [Path(found).parent] if found else []
    return next((folder for folder in candidates if (folder / "pg_ctl").exists()), None)


class Postgres:
    """One server on a free port of the loopback interface; nothing of it outlives `stop`."""

    def __init__(self, folder: Path) -> None:
        self._programs = folder
        self._directory = Path(tempfile.mkdtemp(prefix="loraplex-postgres-"))
        self._user = SERVER_USER if os.getuid() == 0 else None
        if self._user:
            shutil.chown(self._directory, self._user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._count = 0
        self._data = self._directory / "data"
        self._run("initdb", "-A", "trust", "-U", "postgres", "--no-sync", "-D", self._data)
        self.start()

    def start(self) -> None:
        """Start, at first and after `halt`; returns when connections are taken."""
        options = f"-p {self._port} -k {self._directory} -c listen_addresses=127.0.0.1"
        log = self._directory / "log"
        arguments = ("-w", "-D", self._data, "-l", log, "-o", f"{options} -c fsync=off")
        self._run("pg_ctl", *arguments, "start")

    def halt(self) -> None:
        """Stop as an administrator does: connections end, what is committed stays."""
        self._run("pg_ctl", "-D", self._data, "-m", "fast", "stop")

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        self._count += 1
        name = f"test{self._count}"
        server = f"host=127.0.0.1 port={self._port} user=postgres dbname=postgres"
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://postgres@127.0.0.1:{self._port}/{name}"

    @contextmanager
    def away(self, url: str) -> Iterator[None]:
        """Take a database from its clients: their connections end, no new ones begin."""
        name = url.rpartition("/")[2]
        server = f"host=127.0.0.1 port={self._port} user=postgres dbname=postgres"
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
            )
            try:
                yield
            finally:
                connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self._data, "-m", "immediate", "stop")
        shutil.rmtree(self._directory, ignore_errors=True)

    def _run(self, program: str, *arguments: object) -> None:
        command = [str(self._programs / program), *map(str, arguments)]
        subprocess.run(
            command, check=True, user=self._user, stdout=subprocess.DEVNULL, cwd=self._directory
        )
