"""Clients that ask without a pause, and what they see."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx


@dataclass
class Load:
    """What clients saw, in the order of the answers' ends."""

    num_clients: int
    num_asked: int = 0
    num_open: int = 0
    num_answered: int = 0
    failures: list[tuple[int, str]] = field(default_factory=list)
    """Which request it was, counted from 1, and what became of it."""
    ended: bool = False

    async def more(self) -> None:
        """Wait until each client has probably asked twice more."""
        enough = self.num_answered + 2 * self.num_clients
        async with asyncio.timeout(60):
            while self.num_answered < enough:
                await asyncio.sleep(0.05)


async def ask_on(
    http: httpx.AsyncClient,
    url: str,
    model: str,
    load: Load,
    num_tokens: int,
    *,
    joined: bool = False,
) -> None:
    """Stream completions of a version, `tenant/name@number`, until the load has ended.

    Each answer must be that version's and have `num_tokens` events, and the end of the stream.
    `joined`: an event may have several tokens, as with a real engine.
    """
    while not load.ended:
        load.num_open += 1
        load.num_asked += 1
        which = load.num_asked
        try:
            seen = await streamed(http, url, model, num_tokens)
            events = seen[model] if joined and seen[model] else num_tokens
            assert seen == Counter({model: events, "[DONE]": 1}), seen
        except (httpx.HTTPError, AssertionError) as error:
            told = f"{time.monotonic():.1f} {model} through {url}: {error!r}"
            load.failures.append((which, told))
        else:
            load.num_answered += 1
        load.num_open -= 1


async def streamed(http: httpx.AsyncClient, url: str, model: str, num_tokens: int) -> Counter[str]:
    """Return who each event of an answer says it is from."""
    name = model.partition("/")[2].partition("@")[0]
    body = {"model": name, "stream": True, "prompt": "Hello", "max_tokens": num_tokens}
    body |= {"temperature": 0, "ignore_eos": True}
    seen: Counter[str] = Counter()
    async with http.stream("POST", f"{url}/v1/completions", json=body) as response:
        if response.status_code != 200:
            await response.aread()
            raise AssertionError(f"{response.status_code} {response.text[:200]}")
        async for line in response.aiter_lines():
            data = line.removeprefix("data: ")
            if line:
                seen[data if data == "[DONE]" else json.loads(data)["model"]] += 1
    return seen
