"""Clients that ask on and on while a test does something else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def asking(clients: Iterable[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run clients that never end by themselves. Afterwards they are cancelled.

    If a client ended before, because an answer was wrong, its error is raised.
    """
    tasks = [asyncio.create_task(client) for client in clients]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(ended, asyncio.CancelledError):
                raise ended or AssertionError("a client stopped asking")
