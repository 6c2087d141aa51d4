"""What a flood by one tenant costs another, on the real engine.

python -m tests.benchmarks.fair_sharing [--max-running 8]

Prints one JSON object. `alone`: the calm tenant's two clients by themselves. `flooded`: beside
sixteen clients of another tenant. `equal`: four tenants of eight clients each, with Jain's index
of their tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import openai

from tests.real_engine.running_server import RunningServer
from tests.real_engine.test_tenants import key_of

ANSWER_TOKENS = 32


async def client(
    server: RunningServer, key: str, tenant: str, ends_at: float, seen: Counter[str], ttft: Any
) -> None:
    """Ask again and again; count tokens as they come."""
    api = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)
    while time.monotonic() < ends_at:
        started, first = time.monotonic(), True
        stream = await api.completions.create(
            model="base",
            prompt=f"{time.monotonic_ns()} is a number. Tell me a long story about it and its kin.",
            max_tokens=ANSWER_TOKENS,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        async for _ in stream:
            if first:
                ttft.setdefault(tenant, []).append(time.monotonic() - started)
                first = False
            if time.monotonic() < ends_at:
                seen[tenant] += 1


async def phase(
    server: RunningServer, keys: dict[str, str], clients: dict[str, int], seconds: float
) -> dict[str, Any]:
    """Run so many clients of each tenant; tokens/s and first-token times of each."""
    seen: Counter[str] = Counter()
    ttft: dict[str, list[float]] = {}
    ends_at = time.monotonic() + seconds
    await asyncio.gather(
        *(
            client(server, keys[tenant], tenant, ends_at, seen, ttft)
            for tenant, number in clients.items()
            for _ in range(number)
        )
    )
    return {
        tenant: {
            "tokens_per_second": round(seen[tenant] / seconds, 1),
            "ttft_p50_seconds": round(statistics.median(times), 3),
            "ttft_p95_seconds": round(statistics.quantiles(times, n=20)[-1], 3),
            "answers": len(times),
        }
        for tenant, times in ttft.items()
    }


async def measure(server: RunningServer, seconds: float) -> dict[str, Any]:
    tenants = ("calm", "flood", "third", "fourth")
    keys = {tenant: key_of(server, tenant) for tenant in tenants}
    await phase(server, keys, {"calm": 2}, 5)  # warm-up
    alone = await phase(server, keys, {"calm": 2}, seconds)
    flooded = await phase(server, keys, {"calm": 2, "flood": 16}, seconds)
    equal = await phase(server, keys, dict.fromkeys(tenants, 8), seconds)
    served = [row["tokens_per_second"] for row in equal.values()]
    before, after = alone["calm"], flooded["calm"]
    share = min(
        before["tokens_per_second"], sum(r["tokens_per_second"] for r in flooded.values()) / 2
    )
    return {
        "alone": alone,
        "flooded": flooded,
        "equal": equal,
        "ttft_p95_ratio": round(after["ttft_p95_seconds"] / before["ttft_p95_seconds"], 2),
        "throughput_of_share": round(after["tokens_per_second"] / share, 2),
        "jain": round(sum(served) ** 2 / (len(served) * sum(s * s for s in served)), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--max-running", default="8")
    parser.add_argument("--seconds", type=float, default=40)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--max-running", arguments.max_running)
        server = RunningServer(Path(folder) / "var", *flags)
        try:
            server.wait_until_ready()
            print(json.dumps(asyncio.run(measure(server, arguments.seconds)), indent=1))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
