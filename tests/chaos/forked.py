"""A server that starts in a moment: it is forked off a process that has imported everything."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import multiprocessing
import os
import signal
import sys
from pathlib import Path

from tests.deploy.replica import START_SECONDS, Replica, serve

FORKS = multiprocessing.get_context("forkserver")
END_SECONDS = 90
"""After so long a server that should end writes to its log what it waits for."""
FORKS.set_forkserver_preload(["tests.deploy.replica"])


class ForkedReplica(Replica):
    """Like `Replica`, for hundreds of starts."""

    def start(self) -> None:
        self.forked = FORKS.Process(
            target=_serve, args=(self.arguments, self.environment), daemon=True
        )
        self.forked.start()

    @property
    def has_ended(self) -> bool:
        return self.forked.exitcode is not None

    def terminate(self) -> int:
        self.forked.terminate()
        self.forked.join(END_SECONDS)
        if not self.has_ended:
            os.kill(self.forked.pid or 0, signal.SIGUSR1)
            self.forked.join(START_SECONDS)
        assert self.has_ended, "the server didn't end after SIGTERM; its log says what it waits for"
        return self.forked.exitcode or 0

    def kill(self) -> None:
        self.forked.kill()
        self.forked.join()


def _serve(arguments: tuple[int, str, Path, str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    faulthandler.enable()
    folder = arguments[2].parent
    folder.mkdir(parents=True, exist_ok=True)
    log = os.open(folder / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    signal.signal(signal.SIGUSR1, _say_what_runs)
    sys.exit(serve(*arguments))


def _say_what_runs(_signal: int, _frame: object) -> None:
    """Write what each thread and each task does, to the log."""
    faulthandler.dump_traceback(all_threads=True)
    for reference in gc.get_objects():
        if isinstance(reference, asyncio.Task) and not reference.done():
            reference.print_stack()
