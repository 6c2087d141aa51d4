"""What the abuse tests are made of: a bystander, hostile requests, and what is measured of both.

Each hostile request is sent by one tenant while a stream of another tenant runs. The bystander's
stream must go on, and its requests must not fail; the server's memory must not grow much.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

from tests.real_engine.running_server import RunningServer

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
SECONDS = 120
"""Bound on everything: only a server that stands still reaches it."""
NUM_TOKENS_AFTERWARDS = 20
"""The bystander is watched for so many tokens more, since an abuse may hold it up later."""


def encoded(body: Any) -> bytes:
    """Return a body as JSON, or as it is when it is bytes."""
    return body if isinstance(body, bytes) else json.dumps(body).encode()


@dataclass(frozen=True)
class Site:
    """The server, and the key of the tenant that abuses it."""

    server: RunningServer
    key: str

    @property
    def authorization(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.server.url,
            headers=self.authorization,
            timeout=SECONDS,
            limits=httpx.Limits(max_connections=None),
        )

    async def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        """Send a body as JSON, or as it is when it is bytes."""
        async with self.client() as client:
            sent = {"content-type": "application/json", **headers}
            return await client.post(path, content=encoded(body), headers=sent)

    async def post_all(self, path: str, bodies: Sequence[Any]) -> list[httpx.Response]:
        """Send all bodies at once."""
        return await asyncio.gather(*(self.post(path, body) for body in bodies))

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection on which anything can be sent."""
        return await asyncio.open_connection("127.0.0.1", self.server.port)

    def head(self, path: str, **headers: object) -> bytes:
        """Return the head of a POST with the tenant's key, complete but for its last line."""
        lines = {"host": "x", **self.authorization, **headers}
        named = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
        return f"POST {path} HTTP/1.1\r\n{named}".encode()


Answers = Sequence[httpx.Response]


@dataclass(frozen=True)
class Abuse:
    """A hostile request: what is sent, and what the sender gets."""

    name: str
    send: Callable[[Site], Awaitable[Answers]]
    status: int | None
    """What all answers must have; None where the server may answer, or there is no answer."""
    param: str | None = None
    """How the name of the field begins that the error names; None where there is no field."""


@dataclass
class Bystander:
    """Another tenant: a stream, and short requests of its own beside it."""

    server: RunningServer
    key: str
    arrivals: list[float] = field(default_factory=list)
    """When the tokens of its stream came."""
    failures: list[str] = field(default_factory=list)
    longest_request_seconds: float = 0.0
    ended: bool = False

    async def run(self) -> None:
        """Stream one answer after another, and ask, until `ended`."""
        async with httpx.AsyncClient(
            base_url=self.server.url,
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=SECONDS,
        ) as client:
            await asyncio.gather(self._stream(client), self._ask(client))

    async def _stream(self, client: httpx.AsyncClient) -> None:
        body = {
            "model": "base",
            "prompt": "Once upon a time",
            "max_tokens": 400,
            "stream": True,
            "ignore_eos": True,
        }
        while not self.ended:
            async with client.stream("POST", COMPLETIONS, json=body) as answer:
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

    async def _ask(self, client: httpx.AsyncClient) -> None:
        """Ask for JSON under a schema, for which requests of all tenants share a compiler."""
        schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
        body = {
            "model": "base",
            "messages": [{"role": "user", "content": "JSON, please."}],
            "max_tokens": 4,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": schema},
            },
        }
        while not self.ended:
            asked = time.monotonic()
            answer = await client.post(CHAT, json=body)
            if answer.status_code != 200:
                self.failures.append(f"{answer.status_code}: {answer.text}")
            seconds = time.monotonic() - asked
            self.longest_request_seconds = max(seconds, self.longest_request_seconds)
            await asyncio.sleep(1)


@dataclass(frozen=True)
class Harm:
    """What an abuse did to others."""

    longest_gap_seconds: float
    longest_request_seconds: float
    num_tokens: int
    """That the bystander got while the abuse went on."""
    failures: list[str]
    growth_mib: float
    answers: Answers


async def harm_of(abuse: Abuse, site: Site, bystander_key: str) -> Harm:
    """Run an abuse beside a bystander and measure it."""
    bystander = Bystander(site.server, bystander_key)
    # In a thread: what the hostile client computes must not count as a gap of the bystander's.
    running = asyncio.create_task(asyncio.to_thread(asyncio.run, bystander.run()))
    try:
        async with asyncio.timeout(SECONDS):
            while len(bystander.arrivals) < NUM_TOKENS_AFTERWARDS and not running.done():
                await asyncio.sleep(0.01)
            before, began_at = memory_mib(site.server), time.monotonic()
            bystander.longest_request_seconds = 0
            answers = await abuse.send(site)
            num_so_far = len(bystander.arrivals) + NUM_TOKENS_AFTERWARDS
            while len(bystander.arrivals) < num_so_far and not running.done():
                await asyncio.sleep(0.01)
            after = memory_mib(site.server)
    finally:
        bystander.ended = True
        await asyncio.wait([running], timeout=SECONDS)
    during = [at for at in bystander.arrivals if at >= began_at]
    times = [began_at, *during]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    return Harm(
        max(gaps, default=float("inf")),
        bystander.longest_request_seconds,
        len(during),
        bystander.failures,
        after - before,
        answers,
    )


def memory_mib(server: RunningServer) -> float:
    """Memory of the server and all its processes; what several of them share counts once."""
    process = psutil.Process(server.process.pid)
    processes = [process, *process.children(recursive=True)]
    return float(sum(each.memory_full_info().pss for each in processes)) / (1 << 20)
