"""What a flood by one tenant costs another, on the real engine.

python -m tests.benchmarks.fair_sharing [--max-running 8] [--seconds 40] [--rate 2]

Prints one JSON object. `alone`: a calm tenant's requests, Poisson arrivals of one seed, by
themselves. `flooded`: the same beside another tenant whose clients always have eight times its
share of the engine's room waiting or running. `contended`: both want more than their share.
`equal`: four such tenants, with Jain's index of their tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai

from tests.real_engine.running_server import RunningServer
from tests.real_engine.test_tenants import key_of

CALM, FLOOD = "calm", "flood"
TENANTS = (CALM, FLOOD, "third", "fourth")
ANSWER_TOKENS = 32


@dataclass
class Seen:
    """What a phase showed of one tenant."""

    tokens: int = 0
    """Within the phase's time."""
    asked: int = 0
    ttft: list[float] = field(default_factory=list)
    """Seconds from asking to the first token."""

    def summary(self, seconds: float) -> dict[str, Any]:
        return {
            "tokens_per_second": round(self.tokens / seconds, 1),
            "asked_tokens_per_second": round(self.asked * ANSWER_TOKENS / seconds, 1),
            "ttft_p50_ms": round(1000 * statistics.median(self.ttft)),
            "ttft_p95_ms": round(1000 * statistics.quantiles(self.ttft, n=20)[-1]),
            "answers": len(self.ttft),
        }


async def ask(api: openai.AsyncOpenAI, ends_at: float, seen: Seen) -> None:
    started, is_first = time.monotonic(), True
    seen.asked += 1
    stream = await api.completions.create(
        model="base",
        prompt=f"{time.monotonic_ns()} is a number. Tell me a long story about it and its kin.",
        max_tokens=ANSWER_TOKENS,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    async for _ in stream:
        if is_first:
            seen.ttft.append(time.monotonic() - started)
            is_first = False
        seen.tokens += time.monotonic() < ends_at


async def client(api: openai.AsyncOpenAI, ends_at: float, seen: Seen) -> None:
    """Ask again and again."""
    while time.monotonic() < ends_at:
        await ask(api, ends_at, seen)


async def arrivals(api: openai.AsyncOpenAI, rate: float, ends_at: float, seen: Seen) -> None:
    """Ask `rate` times a second on average, whatever answers take; the same times every time."""
    gaps = random.Random(0)
    async with asyncio.TaskGroup() as requests:
        due = time.monotonic() + gaps.expovariate(rate)
        while due < ends_at:
            await asyncio.sleep(due - time.monotonic())
            requests.create_task(ask(api, ends_at, seen))
            due += gaps.expovariate(rate)


class Fleet:
    """The tenants of one server."""

    def __init__(self, server: RunningServer, seconds: float) -> None:
        self._url, self._seconds = f"{server.url}/v1", seconds
        self._keys = {tenant: key_of(server, tenant) for tenant in TENANTS}

    async def phase(self, clients: dict[str, int], rate: float = 0) -> dict[str, Any]:
        """Run so many clients of each tenant, and with a rate the calm one's arrivals."""
        seen = {tenant: Seen() for tenant in clients}
        ends_at = time.monotonic() + self._seconds
        async with asyncio.TaskGroup() as running:
            if rate:
                seen[CALM] = Seen()
                running.create_task(arrivals(self._api(CALM), rate, ends_at, seen[CALM]))
            for tenant, number in clients.items():
                for _ in range(number):
                    running.create_task(client(self._api(tenant), ends_at, seen[tenant]))
        return {tenant: found.summary(self._seconds) for tenant, found in seen.items()}

    def _api(self, tenant: str) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=self._url, api_key=self._keys[tenant], max_retries=0, timeout=300
        )


async def measure(fleet: Fleet, room: int, rate: float) -> dict[str, Any]:
    flood = 8 * room // 2
    await fleet.phase({CALM: 2, FLOOD: room})  # warm-up
    alone = await fleet.phase({}, rate)
    flooded = await fleet.phase({FLOOD: flood}, rate)
    contended = await fleet.phase({CALM: room, FLOOD: flood})
    equal = await fleet.phase(dict.fromkeys(TENANTS, room))
    calm, beside = flooded[CALM], contended[CALM]
    total = sum(row["tokens_per_second"] for row in contended.values())
    served = [row["tokens_per_second"] for row in equal.values()]
    return {
        "alone": alone,
        "flooded": flooded,
        "contended": contended,
        "equal": equal,
        "ttft_p50_ratio": round(calm["ttft_p50_ms"] / alone[CALM]["ttft_p50_ms"], 2),
        "ttft_p95_ratio": round(calm["ttft_p95_ms"] / alone[CALM]["ttft_p95_ms"], 2),
        "flooded_throughput_of_alone": round(
            calm["tokens_per_second"] / alone[CALM]["tokens_per_second"], 2
        ),
        "contended_throughput_of_share": round(beside["tokens_per_second"] / (total / 2), 2),
        "jain": round(sum(served) ** 2 / (len(served) * sum(s * s for s in served)), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--max-running", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--rate", type=float, default=2, help="the calm tenant's requests/s")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--max-running", str(arguments.max_running))
        server = RunningServer(Path(folder) / "var", *flags)
        try:
            server.wait_until_ready()
            fleet = Fleet(server, arguments.seconds)
            found = asyncio.run(measure(fleet, arguments.max_running, arguments.rate))
            print(json.dumps(found, indent=1))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
