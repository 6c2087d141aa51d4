"""Ends work in a thread whose result nobody wants any more.

Python can't stop a thread. So whoever starts one gives it a flag in `stop_flag`, and what may take
long looks at it: a download ends within a part of a second, however the store behaves.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.1

stop_flag: ContextVar[threading.Event | None] = ContextVar("stop_flag", default=None)
"""Is set when nobody waits for the running work any more. None: it can't be given up."""


class GivenUp(Exception):
    """Nobody waits for the result any more. So nobody sees this either."""


def check_stop() -> None:
    """Raise `GivenUp` if nobody waits for the running work any more."""
    if (flag := stop_flag.get()) is not None and flag.is_set():
        raise GivenUp


def wait_for(begin: Callable[[], Awaitable[T]]) -> T:
    """Run an asynchronous call in this thread and return its result. Given up, it ends at once.

    Raises:
        GivenUp: nobody waits for the result any more. Else what the call raises.
    """

    async def watch() -> T:
        call = asyncio.ensure_future(begin())
        while not (await asyncio.wait({call}, timeout=POLL_SECONDS))[0]:
            check_stop()
        return call.result()

    return asyncio.run(watch())


@contextmanager
def holding(lock: threading.Lock) -> Iterator[None]:
    """Hold a lock within the context; raise `GivenUp` if the wait for it is given up."""
    while not lock.acquire(timeout=POLL_SECONDS):
        check_stop()
    try:
        yield
    finally:
        lock.release()
