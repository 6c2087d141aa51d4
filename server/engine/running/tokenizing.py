"""Tokenises prompts of all tenants in turn.

vLLM tokenises in one thread, first come, first served. Ten prompts of half a megabyte, which are
refused afterwards as too long, would hold up everybody else's for many seconds.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

from server.tenancy.meter import current_meter

P = ParamSpec("P")
T = TypeVar("T")


class FairThreads(Executor):
    """Threads that take one call of each tenant in turn. The tenant is that of the caller."""

    def __init__(self, num_threads: int) -> None:
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="tokenizing")
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, deque[tuple[Future[Any], Callable[[], Any]]]]
        self._waiting = OrderedDict()
        """Calls by tenant; the tenant whose turn is next comes first."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        meter = current_meter.get()
        with self._lock:
            calls = self._waiting.setdefault(meter.tenant if meter else "", deque())
            calls.append((future, partial(fn, *args, **kwargs)))
        self._threads.submit(self._run_next)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if cancel_futures:
            with self._lock:
                for calls in self._waiting.values():
                    for future, _ in calls:
                        future.cancel()
        self._threads.shutdown(wait=wait)

    def _run_next(self) -> None:
        with self._lock:
            tenant, calls = self._waiting.popitem(last=False)
            future, call = calls.popleft()
            if calls:
                self._waiting[tenant] = calls
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)


def tokenize_in_turns(renderer: Any) -> None:
    """Have a vLLM renderer use `FairThreads`, also once it replaces its threads."""
    executor = renderer._executor

    def replace_inner() -> None:
        executor._inner.shutdown(wait=False)
        executor._inner = FairThreads(executor._max_workers)

    executor.replace_inner = replace_inner
    replace_inner()
