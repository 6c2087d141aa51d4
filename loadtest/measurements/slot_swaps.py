"""Does the server's memory grow as adapters take each other's slots?"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.table import Table

from loadtest.drive.random_adapters import LlamaShape
from loadtest.measurements.many_adapters import TOKENS_IN, adapter_names, register
from loadtest.measurements.measured_server import Generation, MeasuredServer, random_prompt

SLOTS = 8
"""Of a server that is started for this."""
HOST_BUDGET = 16
"""Of a server that is started for this: most swaps load from disk."""
CLIENTS = 8
MEMORY_SAMPLES = 10


async def run(
    server: MeasuredServer,
    shape: LlamaShape,
    progress: Callable[[str], None],
    *,
    num_adapters: int,
    num_swaps: int,
    memory_bytes: Callable[[], int],
) -> tuple[Table, dict[str, Any]]:
    """Ask for adapters at random until so many weren't in a slot, and sample the server's memory.

    Returns the table to show, and the same as JSON.

    Raises:
        LoadTestError: the server refuses an adapter, or a request fails.
    """
    names = adapter_names(num_adapters)
    await register(server, shape, names, progress)
    rng, samples = np.random.default_rng(0), [(0, memory_bytes())]
    found: Counter[str] = Counter()
    num_done = 0

    async def client() -> None:
        nonlocal num_done
        while num_done < num_swaps:
            name = names[int(rng.integers(len(names)))]
            answer = await server.stream(Generation(name, random_prompt(rng, TOKENS_IN), 1))
            found[answer.tier] += 1
            if answer.tier == "slot":
                continue
            num_done += 1
            if num_done % max(1, num_swaps // MEMORY_SAMPLES) == 0:
                samples.append((num_done, memory_bytes()))
                progress(f"{num_done} of {num_swaps} swaps: {samples[-1][1] >> 20} MiB")

    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client())
    return report(samples, dict(found))


def report(samples: list[tuple[int, int]], found: dict[str, int]) -> tuple[Table, dict[str, Any]]:
    """Return the table, and the same for programs.

    Growth counts from the second sample on: before it, host memory, threads and caches are
    allocated for the first time.
    """
    table = Table("swaps", "memory of its own, MiB")
    for number, size in samples:
        table.add_row(str(number), str(size >> 20))
    growth = samples[-1][1] / samples[1][1] - 1
    table.add_section()
    table.add_row(f"growth after the first {samples[1][0]}", f"{growth:+.1%}")
    mib = {str(number): size >> 20 for number, size in samples}
    result = {"scenario": "many-adapters", "memory_mib": mib, "growth": round(growth, 4)}
    return table, result | {"found": found}
