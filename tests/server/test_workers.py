"""Threads for slow work: a caller that is cancelled, once or again, leaves no call behind."""

from __future__ import annotations

import asyncio
import threading

import pytest

from server.workers import Workers


async def test_a_caller_that_is_cancelled_twice_waits_for_its_call() -> None:
    """As when the server ends: uvicorn cancels a request, then asyncio cancels all tasks."""
    began, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        may_end.wait()
        ended.set()

    caller = asyncio.create_task(Workers("test", 1).run_for("default", work))
    while not began.is_set():
        await asyncio.sleep(0)
    for _ in range(3):
        caller.cancel()
        await asyncio.sleep(0.01)
    assert not caller.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended.is_set()
