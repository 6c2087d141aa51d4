"""What it costs to watch a server: tokens a second with everything on, against everything off.

    python -m tests.benchmarks.observability [--rounds 20]

Two servers with a real engine each take the same load in turn; the one that doesn't is idle. On the
watched one every request is logged as JSON and traced to a collector, an open console asks for its
overview every two seconds, and a scraper asks for metrics with exemplars every five. The collector
and the clients of both servers run on this machine, too: what they take is part of the figure.

Which server comes first changes from round to round. A round's ratio compares two neighbouring
runs, so slow changes of the machine cancel out. `ratio` is the median of all rounds, and `interval`
holds the true median with 95 % confidence if rounds are independent. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from tests.otlp_receiver import otlp_receiver
from tests.real_engine.running_server import RunningServer
from tests.server.console.conftest import Browser

MODELS = ("base", "smart-home")
CONSOLE_SECONDS, SCRAPE_SECONDS = 2.0, 5.0
OPENMETRICS = {"accept": "application/openmetrics-text; version=1.0.0"}
PATIENT = httpx.Timeout(600)
OFF, ON = "off", "on"
WARM_UP_ROUNDS = 2


async def stream(client: httpx.AsyncClient, model: str, tokens: int) -> None:
    """Read one streamed answer of so many tokens."""
    body = {"model": model, "prompt": "Once upon a time", "max_tokens": tokens, "stream": True}
    body |= {"ignore_eos": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        lines = [line async for line in answer.aiter_lines() if line.startswith("data: ")]
    assert answer.status_code == 200, lines
    usage = json.loads(lines[-2].removeprefix("data: "))["usage"]
    assert usage["completion_tokens"] == tokens


async def tokens_per_second(server: RunningServer, streams: int, tokens: int) -> float:
    """Run so many streams at once, half of them on an adapter, and return their throughput."""
    headers = {"authorization": f"Bearer {server.key}"}
    async with httpx.AsyncClient(
        base_url=server.url, headers=headers, timeout=PATIENT, limits=httpx.Limits()
    ) as client:
        started = time.perf_counter()
        models = (MODELS[number % len(MODELS)] for number in range(streams))
        await asyncio.gather(*(stream(client, model, tokens) for model in models))
        return streams * tokens / (time.perf_counter() - started)


@asynccontextmanager
async def watched(server: RunningServer) -> AsyncIterator[None]:
    """Have a console open on the server and metrics scraped until the context ends."""
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENT) as client:
        browser = Browser(client)
        assert (await browser.log_in(server.key)).is_success

        async def repeat(path: str, seconds: float, **headers: str) -> None:
            while True:
                assert (await client.get(path, headers=headers)).is_success
                await asyncio.sleep(seconds)

        watching = [
            asyncio.create_task(repeat("/console/overview/live", CONSOLE_SECONDS)),
            asyncio.create_task(repeat("/metrics", SCRAPE_SECONDS, **OPENMETRICS)),
        ]
        try:
            yield
        finally:
            for task in watching:
                task.cancel()
            for task in watching:
                with suppress(asyncio.CancelledError):
                    await task


async def compare(
    servers: dict[str, RunningServer], rounds: int, streams: int, tokens: int
) -> dict[str, list[float]]:
    """Return both servers' tokens a second, by round."""
    found: dict[str, list[float]] = {OFF: [], ON: []}
    for number in range(-WARM_UP_ROUNDS, rounds):
        for kind in (OFF, ON) if number % 2 else (ON, OFF):
            if kind == ON:
                async with watched(servers[kind]):
                    rate = await tokens_per_second(servers[kind], streams, tokens)
            else:
                rate = await tokens_per_second(servers[kind], streams, tokens)
            if number >= 0:
                found[kind].append(rate)
        if number >= 0:
            on, off = found[ON][-1], found[OFF][-1]
            print(f"round {number + 1}: {on:.1f} on, {off:.1f} off, ratio {on / off:.4f}")
    return found


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the values between which the true median is with 95 % confidence, by their ranks.

    How many of n values are below the true median is distributed as n tosses of a coin.
    """
    ordered, number = sorted(values), len(values)
    outside, rank = 0.0, 0
    while rank < number // 2 and outside + math.comb(number, rank) / 2**number <= 0.025:
        outside += math.comb(number, rank) / 2**number
        rank += 1
    first = max(rank - 1, 0)
    return ordered[first], ordered[number - 1 - first]


def summary(found: dict[str, list[float]]) -> dict[str, Any]:
    """Return what the benchmark's last line says."""
    ratios = [on / off for on, off in zip(found[ON], found[OFF], strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 4),
        "interval": [round(bound, 4) for bound in median_interval(ratios)],
        "tokens_per_second": {kind: round(statistics.median(found[kind]), 1) for kind in found},
        "ratios": [round(ratio, 4) for ratio in ratios],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128, help="of each stream")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, otlp_receiver() as receiver, ExitStack() as stack:
        flags = ["--demo", "--kv-cache-gib", "0.5", "--log-level", "error"]
        traced = ["--traces-endpoint", receiver.endpoint, "--traces-share", "1"]
        by_kind = {OFF: ["--request-log", "off"], ON: ["--request-log", "json", *traced]}
        servers = {}
        for kind, own in by_kind.items():
            servers[kind] = RunningServer(Path(folder) / kind, *flags, *own)
            stack.callback(servers[kind].stop)
            servers[kind].wait_until_ready()
        run = compare(servers, options.rounds, options.streams, options.tokens)
        print(json.dumps(summary(asyncio.run(run))))


if __name__ == "__main__":
    main()
