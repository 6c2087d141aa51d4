"""What the abuse tests are made of: a bystander, hostile requests, and what is measured of both.

Each hostile request is sent by one tenant while a stream of another tenant runs. The bystander's
stream must go on, and its requests must not fail; the server's memory must not grow much.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

from tests.real_engine.running_server import RunningServer

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SECONDS = 120
"""Bound on everything: only a server that stands still reaches it."""


@dataclass(frozen=True)
class Site:
    """The server, and the key of the tenant that abuses it."""

    server: RunningServer
    key: str

    async def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        """Send a body as JSON, or as it is when it is bytes."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.key}", "content-type": "application/json"}
        async with httpx.AsyncClient(base_url=self.server.url, timeout=SECONDS) as client:
            return await client.post(path, content=content, headers=headers, **options)


@dataclass(frozen=True)
class Abuse:
    """A hostile request: what is sent, and what the sender gets."""

    name: str
    send: Callable[[Site], Awaitable[httpx.Response | None]]
    status: int | None
    """What the last answer must have; None where there is no answer to look at."""
    param: str | None = None
    """The field that the error names; None where that doesn't matter."""


@dataclass
class Bystander:
    """A stream of another tenant, and when its tokens came."""

    server: RunningServer
    key: str
    arrivals: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    ended: bool = False

    async def run(self) -> None:
        """Stream one answer after another until `ended`."""
        headers = {"Authorization": f"Bearer {self.key}"}
        body = {
            "model": "base",
            "prompt": "Once upon a time",
            "max_tokens": 400,
            "stream": True,
            "ignore_eos": True,
        }
        async with httpx.AsyncClient(base_url=self.server.url, timeout=SECONDS) as client:
            while not self.ended:
                async with client.stream("POST", COMPLETIONS, json=body, headers=headers) as answer:
                    if answer.status_code != 200:
                        self.failures.append(f"{answer.status_code}: {await answer.aread()!r}")
                        return
                    await self._read(answer)

    async def _read(self, answer: httpx.Response) -> None:
        lines = []
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                lines.append(line)
                self.arrivals.append(time.monotonic())
            if self.ended:
                return
        if not lines or lines[-1] != "data: [DONE]" or any('"error"' in each for each in lines):
            self.failures.append(f"a stream broke off: {lines[-1:]}")


@dataclass(frozen=True)
class Harm:
    """What an abuse did to others."""

    longest_gap_seconds: float
    num_tokens: int
    """That the bystander got while the abuse went on."""
    failures: list[str]
    growth_mib: float
    answer: httpx.Response | None


async def harm_of(abuse: Abuse, site: Site, bystander_key: str) -> Harm:
    """Run an abuse beside a bystander and measure it."""
    bystander = Bystander(site.server, bystander_key)
    running = asyncio.create_task(bystander.run())
    try:
        async with asyncio.timeout(SECONDS):
            while len(bystander.arrivals) < 20 and not running.done():
                await asyncio.sleep(0.01)
            before, began_at = memory_mib(site.server), time.monotonic()
            answer = await abuse.send(site)
            num_so_far = len(bystander.arrivals)
            # The abuse may hold it up only afterwards, so look at what follows, too.
            while len(bystander.arrivals) < num_so_far + 20 and not running.done():
                await asyncio.sleep(0.01)
            after = memory_mib(site.server)
    finally:
        bystander.ended = True
        await asyncio.wait([running], timeout=SECONDS)
    during = [at for at in bystander.arrivals if at >= began_at]
    times = [began_at, *during]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    longest = max(gaps, default=float("inf"))
    return Harm(longest, len(during), bystander.failures, after - before, answer)


def memory_mib(server: RunningServer) -> float:
    """Memory of the server and all its processes; what several of them share counts once."""
    process = psutil.Process(server.process.pid)
    processes = [process, *process.children(recursive=True)]
    return float(sum(each.memory_full_info().pss for each in processes)) / (1 << 20)
