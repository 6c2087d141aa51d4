"""Threads for slow work of one kind, so that it cannot take the threads that other work needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar
from weakref import WeakValueDictionary

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
        return await self._submit(function, *args, **kwargs)

    async def run_for(
        self, tenant: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call a function in a thread, within the number of threads that one tenant may use.

        A caller that is cancelled waits for the call to end, because a thread cannot be stopped,
        and its files must not be removed while it works on them.
        """
        limit = self._limits.get(tenant)
        if limit is None:
            limit = self._limits[tenant] = asyncio.Semaphore(self._per_tenant)
        async with limit:
            call = asyncio.ensure_future(self._submit(function, *args, **kwargs))
            try:
                return await asyncio.shield(call)
            except asyncio.CancelledError:
                await asyncio.wait([call])
                raise

    def _submit(
        self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[T]:
        call = partial(copy_context().run, function, *args, **kwargs)
        return asyncio.get_running_loop().run_in_executor(self._pool, call)
