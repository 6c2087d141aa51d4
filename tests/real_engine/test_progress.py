"""An engine that hangs is restarted; one that is only busy stays ready."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import httpx
import pytest

from tests.real_engine.running_server import RunningServer
from tests.real_engine.test_process import wait_for

HANG_SECONDS = 10
SECONDS = 150


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    flags = ["--hang-seconds", str(HANG_SECONDS), "--kv-cache-gib", "0.25"]
    server = RunningServer(tmp_path_factory.mktemp("progress") / "var", *flags)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


async def test_load_never_makes_a_server_unready_while_tokens_come(server: RunningServer) -> None:
    """Sixty-four long prompts fill the KV cache, so that a probe finds no memory."""
    headers = {"Authorization": f"Bearer {server.key}"}
    statuses: list[int] = []

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        body = {
            "model": "base",
            "prompt": f"{number}. " + "And so it went on and on. " * 400,
            "max_tokens": 2000,
            "ignore_eos": True,
        }
        await client.post("/v1/completions", json=body, headers=headers)

    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=server.url, timeout=SECONDS, limits=limits) as client:
        load = [asyncio.create_task(ask(client, number)) for number in range(64)]
        for _ in range(20):
            await asyncio.sleep(1)
            statuses.append((await client.get("/readyz")).status_code)
        assert not any(task.done() for task in load[32:]), "the load was over too soon"
        for task in load:
            task.cancel()
    assert set(statuses) == {200}


async def test_a_hung_engine_is_answered_with_503_and_restarted(server: RunningServer) -> None:
    (engine,) = server.engine_processes()
    headers = {"Authorization": f"Bearer {server.key}"}
    body = {"model": "base", "prompt": "a", "max_tokens": 4000, "ignore_eos": True}
    async with httpx.AsyncClient(base_url=server.url, timeout=SECONDS) as client:
        asked = asyncio.create_task(client.post("/v1/completions", json=body, headers=headers))
        await asyncio.sleep(2)
        os.kill(engine.pid, signal.SIGSTOP)
        answer = await asked
    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    await asyncio.to_thread(wait_for, lambda: not engine.is_running(), SECONDS)
    await asyncio.to_thread(server.wait_until_ready)
    assert "hung" in server.log.read_text()
    (new,) = server.engine_processes()
    assert new.pid != engine.pid
