"""The supervisor's side of loading, with workers that answer as told."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.engine.loading import AdapterLoading
from server.engine.worker.extension import WorkerReply
from server.errors import NotLoadable, Unavailable

VERSION: Any = SimpleNamespace(version_id=7, public_name="acme/a@1")


class Loading(AdapterLoading):
    """Two workers; `answers` holds what they say to a call, one list a call, the last for good."""

    def __init__(self, **answers: list[list[Any]]) -> None:
        self.answers = answers
        self.calls: list[tuple[Any, ...]] = []
        self.requests: list[int] = []

    async def call_workers(self, method: str, *arguments: object) -> list[Any]:
        name = method.removeprefix("loraplex_")
        self.calls.append((name, *arguments))
        answers = self.answers.get(name, [[None, None]])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def ids_in_use(self) -> set[int]:
        return set(self.requests)

    def called(self) -> list[str]:
        return [name for name, *_ in self.calls]


async def test_prepare_waits_for_every_worker() -> None:
    reading, ready = WorkerReply.READING, WorkerReply.READY
    loading = Loading(
        prepare=[[reading, reading]], prepared=[[ready, reading], [reading, ready], [ready, ready]]
    )
    await loading.prepare(VERSION, Path("somewhere"))
    assert loading.calls[0] == ("prepare", 7, "acme/a@1", "somewhere")
    assert loading.called() == ["prepare"] + 3 * ["prepared"]


async def test_prepare_asks_no_more_if_the_first_answer_says_that_all_is_read() -> None:
    loading = Loading(prepare=[[WorkerReply.READY]])
    await loading.prepare(VERSION, Path("somewhere"))
    assert loading.called() == ["prepare"]


async def test_a_worker_that_cannot_read_makes_all_forget() -> None:
    loading = Loading(
        prepare=[[WorkerReply.READY, "truncated"]], evict=[[WorkerReply.DONE, WorkerReply.DONE]]
    )
    with pytest.raises(NotLoadable, match="acme/a@1 could not be loaded: truncated"):
        await loading.prepare(VERSION, Path("somewhere"))
    assert loading.called()[-1] == "evict"


async def test_evict_waits_for_requests_and_for_the_batch() -> None:
    done, in_use = WorkerReply.DONE, WorkerReply.IN_USE
    loading = Loading(evict=[[done, in_use], [done, done]])
    loading.requests = [7]
    eviction = asyncio.create_task(loading.evict(VERSION))
    await asyncio.sleep(0.05)
    assert loading.calls == []
    loading.requests = []
    await eviction
    assert loading.calls == 2 * [("evict", 7)]


async def test_install_keeps_whom_it_must_and_who_has_requests() -> None:
    in_use, done = WorkerReply.IN_USE, WorkerReply.DONE
    loading = Loading(install=[[in_use, done], [done, done]])
    loading.requests, kept = [9], [[7, 8], [7]]
    await loading.install(VERSION, lambda: kept.pop(0))
    assert loading.calls == [("install", 7, [7, 8, 9]), ("install", 7, [7, 9])]


async def test_install_ends_when_it_is_told() -> None:
    def give_up() -> list[int]:
        raise Unavailable("lost")

    loading = Loading(install=[[WorkerReply.IN_USE]])
    with pytest.raises(Unavailable, match="lost"):
        await loading.install(VERSION, give_up)


async def test_install_wants_a_prepared_version() -> None:
    with pytest.raises(Unavailable, match="isn't in"):
        await Loading(install=[[WorkerReply.DONE, WorkerReply.UNKNOWN]]).install(VERSION)
