"""What running streams feel of adapters being loaded: gaps between their tokens, and memory.

    python -m tests.benchmarks.loading [--seconds 20] [--cycles 300]

Four streams (two of the base, two of an adapter) run while other adapters of 10 MB (rank 8, all
linear layers, in float32) are loaded one after the other: not at all, by vLLM's `add_lora`, and by
`prepare` and `install`. The phases take turns, so that a machine's moods hit all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil

from loadtest.drive.random_adapters import LlamaShape, make_adapter
from server.engine.openai import lora_request
from tests.real_engine.one_engine import Version, running_engine, stream

ROUNDS = 3
ADAPTERS = 8
STREAMS = 4


class Bystanders:
    """Streams that run on and on, and note when their tokens come."""

    def __init__(self, engine: Any, version: Any, path: Path) -> None:
        self._engine = engine
        self._adapters = [(None, None), (version, path)]
        self._gaps: list[float] = []

    async def gaps(self, seconds: float, load: Callable[[], Awaitable[None]] | None) -> list[float]:
        """Milliseconds between tokens while `load` is called again and again."""
        self._gaps = []
        deadline = time.perf_counter() + seconds
        async with asyncio.TaskGroup() as group:
            for number in range(STREAMS):
                group.create_task(self._run(deadline, *self._adapters[number % 2]))
            while load and time.perf_counter() < deadline:
                await asyncio.sleep(0.1)
                await load()
        return self._gaps

    async def _run(self, deadline: float, version: Any, path: Path | None) -> None:
        last = None
        async for _ in stream(self._engine, 2000, version, path):
            now = time.perf_counter()
            if last is not None:
                self._gaps.append(1000 * (now - last))
            last = now
            if now > deadline:
                return


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


async def measure(directory: Path, seconds: float, cycles: int) -> None:
    paths = [directory / f"adapter{number}" for number in range(ADAPTERS)]
    for number, path in enumerate(paths):
        make_adapter(path, LlamaShape(), rank=8, seed=number)
    async with running_engine(max_loras=4, kv_cache_gib=1.0) as engine:
        steady: Any = Version(1, "steady")
        assert engine._client is not None
        llm = engine._client.llm
        await engine.prepare(steady, paths[0])
        await engine.install(steady)
        times: dict[str, list[float]] = {"add_lora": [], "prepare": [], "install": []}
        numbers = itertools.count(2)

        def next_version() -> tuple[Any, Path]:
            number = next(numbers)
            return Version(number, f"adapter@{number}"), paths[number % ADAPTERS]

        async def timed(name: str, call: Awaitable[Any]) -> None:
            start = time.perf_counter()
            await call
            times[name].append(1000 * (time.perf_counter() - start))

        async def stock() -> None:
            request = lora_request(*next_version())
            await timed("add_lora", llm.add_lora(request))
            await llm.remove_lora(request.lora_int_id)

        async def ours() -> None:
            version, path = next_version()
            await timed("prepare", engine.prepare(version, path))
            await timed("install", engine.install(version))
            await engine.evict(version)

        bystanders = Bystanders(engine, steady, paths[0])
        ways = {"no loads": None, "add_lora": stock, "prepare + install": ours}
        gaps: dict[str, list[float]] = {way: [] for way in ways}
        await bystanders.gaps(2, None)
        for _ in range(ROUNDS):
            for way, load in ways.items():
                gaps[way] += await bystanders.gaps(seconds / ROUNDS, load)
        for way, values in gaps.items():
            p50, p90, p99 = (percentile(values, percent) for percent in (50, 90, 99))
            print(
                f"{way:18} gaps of {len(values)} tokens: P50 {p50:.1f}, P90 {p90:.1f}, "
                f"P99 {p99:.1f}, longest {max(values):.1f} ms",
                flush=True,
            )
        for name, values in times.items():
            print(f"{name:18} {len(values)} calls, median {statistics.median(values):.1f} ms")
        core: Any = llm.engine_core
        process = psutil.Process(core.resources.engine_manager.processes[0].pid)
        print("memory of the engine's process, MB:", end="")
        for cycle in range(cycles + 1):
            if cycle % (cycles // 5) == 0:
                print(f" {process.memory_info().rss / 1e6:.0f} after {cycle} loads", end=",")
            await ours()
        print()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--cycles", type=int, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(measure(Path(directory), arguments.seconds, arguments.cycles))


if __name__ == "__main__":
    main()
