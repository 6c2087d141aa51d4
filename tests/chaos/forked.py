"""A server that starts in a moment: it is forked off a process that has imported everything."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.deploy.replica import START_SECONDS, Replica, serve

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.deploy.replica"])


class ForkedReplica(Replica):
    """Like `Replica`, for hundreds of starts."""

    def __init__(
        self,
        port: int,
        database_url: str,
        content: Path,
        origin: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._arguments = port, database_url, content, origin, dict(environment or {})
        super().__init__(port, database_url, content, origin, environment)

    def start(self) -> None:
        self.forked = FORKS.Process(target=_serve, args=self._arguments, daemon=True)
        self.forked.start()

    @property
    def has_ended(self) -> bool:
        return self.forked.exitcode is not None

    def terminate(self) -> int:
        self.forked.terminate()
        self.forked.join(START_SECONDS)
        assert self.has_ended, "the server didn't end after SIGTERM"
        return self.forked.exitcode or 0

    def kill(self) -> None:
        self.forked.kill()
        self.forked.join()


def _serve(
    port: int, database_url: str, content: Path, origin: str, environment: dict[str, str]
) -> None:
    os.environ.update(environment)
    faulthandler.enable()
    content.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(content.parent / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    sys.exit(serve(port, database_url, content, origin))
