"""Readiness under load: it follows from the engine's progress."""

from __future__ import annotations

import asyncio
from collections import Counter

import httpx

from tests.long_form import LONG
from tests.real_engine.running_server import RunningServer

NUM_PROMPTS = 64
NUM_POLLS = 60 if LONG else 20
KUBELET_SECONDS = 10.0
"""How long the chart's readiness probe waits."""
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
