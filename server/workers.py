"""Threads for slow work of one kind, so that it cannot take the threads that other work needs.

When a caller is cancelled, its work's `stop_flag` is set. Work that looks at it, as downloads do,
then ends soon.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar
from weakref import WeakValueDictionary

from adapters_registry.content.stopping import stop_flag

P = ParamSpec("P")
T = TypeVar("T")


class Workers:
    """At most `num_threads` calls run at a time; further ones wait."""

    def __init__(self, name: str, num_threads: int, *, per_tenant: int | None = None) -> None:
        """`per_tenant`: how many of the threads one tenant may use at a time; None is all."""
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        self._per_tenant = per_tenant or num_threads
        self._limits: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a thread, in the caller's context. Raises what it raises."""
        call, stop = self._submit(function, *args, **kwargs)
        try:
            return await call
        except asyncio.CancelledError:
            stop.set()
            raise

    async def run_for(
        self, tenant: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call a function in a thread, within the number of threads that one tenant may use.

        A caller that is cancelled waits for the call to end, because a thread cannot be stopped,
        and its files must not be removed while it works on them. When the server ends, uvicorn
        cancels a request, and then asyncio does so again.
        """
        limit = self._limits.get(tenant)
        if limit is None:
            limit = self._limits[tenant] = asyncio.Semaphore(self._per_tenant)
        async with limit:
            call, stop = self._submit(function, *args, **kwargs)
            try:
                return await asyncio.shield(call)
            except asyncio.CancelledError:
                stop.set()
                while not call.done():
                    with suppress(asyncio.CancelledError):
                        await asyncio.wait([call])
                raise

    def _submit(
        self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> tuple[asyncio.Future[T], threading.Event]:
        stop, context = threading.Event(), copy_context()
        context.run(stop_flag.set, stop)
        call = partial(context.run, function, *args, **kwargs)
        return asyncio.get_running_loop().run_in_executor(self._pool, call), stop
