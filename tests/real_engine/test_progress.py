"""Readiness under load, and an engine that stands still: both follow from the engine's progress."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx
from psutil import STATUS_STOPPED, wait_procs

from tests.long_form import LONG
from tests.real_engine.running_server import RunningServer
from tests.tiny_llama import make_tiny_llama

NUM_PROMPTS = 64
NUM_POLLS = 60 if LONG else 20
KUBELET_SECONDS = 10.0
"""How long the chart's readiness probe waits."""
HANG_SECONDS = 10
LONG_PROMPT = "And so it went on and on, from the first page to the last. " * 350
"""About 5,000 tokens: nine of them fill a KV cache of 1 GiB."""


async def test_load_does_not_fail_readiness(server: RunningServer) -> None:
    """More long prompts wait than the engine's memory holds, and all the while tokens come."""
    num_tokens: Counter[int] = Counter()
    refused: list[str] = []

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        body = {
            "model": "base",
            "prompt": f"{number}. {LONG_PROMPT}",
            "max_tokens": 2000,
            "ignore_eos": True,
            "stream": True,
        }
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                refused.append(f"{answer.status_code}: {await answer.aread()!r}")
            async for line in answer.aiter_lines():
                num_tokens[number] += line.startswith("data: ")

    async with httpx.AsyncClient(
        base_url=server.url,
        headers={"Authorization": f"Bearer {server.key}"},
        timeout=None,
        limits=httpx.Limits(max_connections=None),
    ) as client:
        running = [asyncio.create_task(ask(client, number)) for number in range(NUM_PROMPTS)]
        try:
            statuses: list[int] = []
            while len(statuses) < NUM_POLLS or num_tokens.total() < 2:
                answer = await client.get("/readyz", timeout=KUBELET_SECONDS)
                statuses.append(answer.status_code)
                await asyncio.sleep(0.5)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
    assert statuses == [200] * len(statuses)
    assert not refused
    assert num_tokens.total() > 1
    assert len(num_tokens) < NUM_PROMPTS, "all were answered: nothing waited"


async def test_an_engine_that_stands_still_is_restarted(tmp_path: Path) -> None:
    """Until then requests wait; none waits for ever, and all get a 503."""
    base = str(make_tiny_llama(tmp_path / "base", hidden=128))
    server = RunningServer(tmp_path / "var", "--base", base, "--hang-seconds", str(HANG_SECONDS))
    try:
        await asyncio.to_thread(server.wait_until_ready)
        await stop_and_ask(server)
        await asyncio.to_thread(server.wait_until_ready)
        answer = server.admin("POST", "/v1/completions", json={**QUESTION, "max_tokens": 3})
        assert answer.json()["usage"]["completion_tokens"] == 3
        assert "loraplex_engine_starts_total 2.0" in server.admin("GET", "/metrics").text
        assert f"it hung: no step ended and no call was answered for {HANG_SECONDS} s" in (
            server.log.read_text()
        )
    finally:
        server.stop()


QUESTION = {"model": "base", "prompt": "Once", "max_tokens": 200, "ignore_eos": True}


async def stop_and_ask(server: RunningServer) -> None:
    """Stop the engine's process; return once the server has given it up."""
    [engine] = server.engine_processes()
    headers = {"Authorization": f"Bearer {server.key}"}
    question = {**QUESTION, "stream": True}
    async with (
        httpx.AsyncClient(base_url=server.url, headers=headers, timeout=120) as client,
        client.stream("POST", "/v1/completions", json=question) as answer,
    ):
        lines = answer.aiter_lines()
        await anext(lines)
        os.kill(engine.pid, signal.SIGSTOP)
        rest = asyncio.create_task(collect(lines))
        waiting = [
            asyncio.create_task(client.post("/v1/completions", json=QUESTION)) for _ in range(3)
        ]
        await asyncio.sleep(1)
        assert engine.status() == STATUS_STOPPED
        assert (await client.get("/livez")).status_code == 200
        while (ready := await client.get("/readyz")).status_code == 200:
            await asyncio.sleep(0.5)  # a step may have ended just before
        assert ready.status_code == 503
        for refused in await asyncio.gather(*waiting):
            assert refused.status_code == 503, refused.text
            assert refused.json()["error"]["code"] == "engine_unavailable"
            assert int(refused.headers["retry-after"]) >= 1
        assert '"error"' in await rest, "the open stream doesn't look complete"
        late = await client.post("/v1/completions", json=QUESTION)
        assert late.status_code == 503, "a request in the meantime is refused at once"
    _, alive = await asyncio.to_thread(wait_procs, [engine], timeout=60)
    assert not alive, "the process that stood still was not killed"


async def collect(lines: object) -> str:
    """Join what is left of a stream, also one that is cut off."""
    text = ""
    with suppress(httpx.HTTPError):
        async for line in lines:  # type: ignore[attr-defined]
            text += line
    return text
