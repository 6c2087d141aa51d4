"""Whose prompt is tokenised next."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from server.engine.running.tokenizing import FairThreads, tokenize_in_turns
from server.tenancy.meter import Meter, current_meter
from server.tenancy.prompt_queue import PromptQueue


def submit(threads: Any, tenant: str, call: Any) -> Future[Any]:
    current_meter.set(Meter(PromptQueue(1, 1), tenant, 1))
    future: Future[Any] = threads.submit(call)
    return future


def test_a_flood_of_one_tenant_lets_the_others_in() -> None:
    threads, begin = FairThreads(1), threading.Event()
    done: list[str] = []
    first = submit(threads, "flood", begin.wait)
    flood = [submit(threads, "flood", lambda: done.append("flood")) for _ in range(5)]
    calm = [submit(threads, "calm", lambda: done.append("calm")) for _ in range(2)]
    begin.set()
    for future in (first, *flood, *calm):
        future.result(10)
    assert done[:4] == ["flood", "calm", "flood", "calm"]
    threads.shutdown()


def test_results_errors_and_calls_that_nobody_waits_for() -> None:
    threads, begin = FairThreads(1), threading.Event()
    submit(threads, "a", begin.wait)
    failing, cancelled = submit(threads, "a", lambda: 1 / 0), submit(threads, "a", list)
    assert cancelled.cancel()
    begin.set()
    with pytest.raises(ZeroDivisionError):
        failing.result(10)
    assert submit(threads, "a", list).result(10) == []
    threads.shutdown()


def test_vllm_may_replace_the_threads() -> None:
    from vllm.renderers.base import _SwappableExecutor

    renderer = SimpleNamespace(_executor=_SwappableExecutor(1))
    executor = renderer._executor
    tokenize_in_turns(renderer)
    first = executor._inner
    executor.replace_inner()
    assert isinstance(first, FairThreads)
    assert isinstance(executor._inner, FairThreads)
    assert executor._inner is not first
    assert submit(executor, "a", list).result(10) == []
    executor.shutdown()
