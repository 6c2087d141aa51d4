"""What a flood by one tenant costs another, on the real engine.

python -m tests.benchmarks.fair_sharing [--max-running 8] [--seconds 40] [--rate 2]
    [--flood-words 0] [--prefill-tokens N]

Prints one JSON object. `alone`: a calm tenant's requests, Poisson arrivals of one seed, by
themselves. `flooded`: the same beside another tenant whose clients always have eight times its
share of the engine's room waiting or running, with so many words more in each prompt.
`contended`: both want more than their share. `equal`: four such tenants, with Jain's index of
their tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtest.drive.request import RequestSender, make_call
from loadtest.outcome.request_outcome import Outcome
from loadtest.plan.scenario import Limits
from tests.real_engine.running_server import RunningServer
from tests.real_engine.test_tenants import key_of

CALM, FLOOD = "calm", "flood"
TENANTS = (CALM, FLOOD, "third", "fourth")
ANSWER_TOKENS = 32
PATIENT = Limits(stall_seconds=200, request_seconds=400, drain_seconds=400)


@dataclass(frozen=True)
class Tenant:
    """Whose requests are sent, and by what."""

    sender: RequestSender
    key: str
    words: int = 0
    """In each prompt, beside the common ones."""


@dataclass
class Seen:
    """What a phase showed of one tenant."""

    tokens: int = 0
    """Within the phase's time."""
    asked: int = 0
    ttft: list[float] = field(default_factory=list)
    """Seconds from asking to the first token."""
    gaps: list[float] = field(default_factory=list)
    """Seconds from each token to the next."""

    def summary(self, seconds: float) -> dict[str, Any]:
        return {
            "tokens_per_second": round(self.tokens / seconds, 1),
            "asked_tokens_per_second": round(self.asked * ANSWER_TOKENS / seconds, 1),
            "ttft_p50_ms": round(1000 * statistics.median(self.ttft)),
            "ttft_p95_ms": round(1000 * statistics.quantiles(self.ttft, n=20)[-1]),
            "gap_p50_ms": round(1000 * statistics.median(self.gaps)),
            "gap_p99_ms": round(1000 * statistics.quantiles(self.gaps, n=100)[-1]),
            "answers": len(self.ttft),
        }


async def ask(api: Tenant, ends_at: float, seen: Seen) -> None:
    more = "".join(f" {random.randrange(1000)}" for _ in range(api.words))
    body = {
        "model": "base",
        "prompt": f"{time.monotonic_ns()} is a number. Tell me a long story about it and its kin."
        + more,
        "max_tokens": ANSWER_TOKENS,
        "stream": True,
        "ignore_eos": True,
    }
    now = api.sender.now()
    outcome = Outcome(api.key, "base", now, now, now, ANSWER_TOKENS)
    seen.asked += 1
    await api.sender.send(make_call("/v1/completions", body, api.key), outcome)
    if not outcome.ok or outcome.first is None:
        raise RuntimeError(f"{outcome.status}: {outcome.detail}")
    seen.ttft.append(outcome.first - now)
    seen.gaps += outcome.gaps
    came = itertools.accumulate(outcome.gaps, initial=outcome.first)
    seen.tokens += sum(moment < ends_at for moment in came)


async def client(api: Tenant, ends_at: float, seen: Seen) -> None:
    """Ask again and again."""
    while api.sender.now() < ends_at:
        await ask(api, ends_at, seen)


async def arrivals(api: Tenant, rate: float, ends_at: float, seen: Seen) -> None:
    """Ask `rate` times a second on average, whatever answers take; the same times every time."""
    gaps = random.Random(0)
    async with asyncio.TaskGroup() as requests:
        due = api.sender.now() + gaps.expovariate(rate)
        while due < ends_at:
            await asyncio.sleep(due - api.sender.now())
            requests.create_task(ask(api, ends_at, seen))
            due += gaps.expovariate(rate)


class Fleet:
    """The tenants of one server."""

    def __init__(
        self, server: RunningServer, sender: RequestSender, seconds: float, flood_words: int
    ) -> None:
        self._sender, self._seconds = sender, seconds
        words = {FLOOD: flood_words}
        self._tenants = {
            name: Tenant(sender, key_of(server, name), words.get(name, 0)) for name in TENANTS
        }

    async def phase(self, clients: dict[str, int], rate: float = 0) -> dict[str, Any]:
        """Run so many clients of each tenant, and with a rate the calm one's arrivals."""
        seen = {tenant: Seen() for tenant in (*clients, *([CALM] if rate else []))}
        ends_at = self._sender.now() + self._seconds
        async with asyncio.TaskGroup() as running:
            if rate:
                running.create_task(arrivals(self._tenants[CALM], rate, ends_at, seen[CALM]))
            for tenant, number in clients.items():
                for _ in range(number):
                    running.create_task(client(self._tenants[tenant], ends_at, seen[tenant]))
        return {tenant: found.summary(self._seconds) for tenant, found in seen.items()}


async def measure(server: RunningServer, given: argparse.Namespace) -> dict[str, Any]:
    async with RequestSender(server.url, PATIENT) as sender:
        fleet = Fleet(server, sender, given.seconds, given.flood_words)
        return await compare(fleet, given.max_running, given.rate)


async def compare(fleet: Fleet, room: int, rate: float) -> dict[str, Any]:
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
    parser.add_argument("--flood-words", type=int, default=0)
    parser.add_argument("--prefill-tokens", help="the server's setting; default: its own")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--max-running", str(arguments.max_running)]
        if arguments.prefill_tokens:
            flags += ["--prefill-tokens", arguments.prefill_tokens]
        server = RunningServer(Path(folder) / "var", *flags)
        try:
            server.wait_until_ready()
            print(json.dumps(asyncio.run(measure(server, arguments)), indent=1))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
