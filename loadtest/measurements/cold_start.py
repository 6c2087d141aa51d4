"""How long the first token takes, by where the server finds the adapter: slot, host, disk, origin.

Adapters of 10 MB are asked for in an order that meets every tier. The response's header
`x-adapter-tier` names the tier of each request. Requests go one after the other, first to an
otherwise idle server, then beside streams of the base. Requests to the base show what a server
without adapters does.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
from rich.table import Table

from loadtest.drive.random_adapters import LlamaShape, make_adapter
from loadtest.measurements.measured_server import Generation, MeasuredServer, random_prompt

NUM_ADAPTERS = 12
RANK = 8
SLOTS, HOST_BUDGET = 2, 4
"""Of a server that is started for this, so that 12 adapters meet every tier."""
ROUNDS = 3
STREAMS, STREAM_TOKENS = 4, 256
PROMPT_TOKENS = 32
MIN_REQUESTS = 5
"""A tier that fewer requests met is left out of the report."""

BASE = "base, no adapter"
TIERS = (BASE, "slot", "host", "disk", "origin")
CONDITIONS = ("idle server", f"beside {STREAMS} streams")

Times = dict[str, dict[str, list[float]]]
"""Milliseconds to the first token, by condition and tier."""


async def run(
    server: MeasuredServer,
    shape: LlamaShape,
    progress: Callable[[str], None],
    stream_tokens: int = STREAM_TOKENS,
) -> tuple[Table, dict[str, Any]]:
    """Measure. Returns the table to show, and the same as JSON.

    Raises:
        LoadTestError: the server refuses an adapter, or a request fails.
    """
    base, names = await server.admin.base(), [f"bench-cold-{n}" for n in range(NUM_ADAPTERS)]
    progress(f"registering {NUM_ADAPTERS} adapters of rank {RANK}")
    size_bytes = await _register(server, shape, names)
    times: Times = {condition: defaultdict(list) for condition in CONDITIONS}
    await _ask_all(server, base, names, defaultdict(list))  # warms up
    for round_ in range(ROUNDS):
        progress(f"round {round_ + 1} of {ROUNDS}: {CONDITIONS[0]}")
        await _ask_all(server, base, names, times[CONDITIONS[0]])
        progress(f"round {round_ + 1} of {ROUNDS}: {CONDITIONS[1]}")
        async with asyncio.TaskGroup() as group:
            ended = asyncio.Event()
            for _ in range(STREAMS):
                group.create_task(_stream_on(server, base, ended, stream_tokens))
            await _ask_all(server, base, names, times[CONDITIONS[1]])
            ended.set()
    return report(times, size_bytes)


async def _register(server: MeasuredServer, shape: LlamaShape, names: list[str]) -> int:
    """Upload the adapters. Returns the size of one in bytes."""
    with tempfile.TemporaryDirectory() as parent:
        for seed, name in enumerate(names):
            directory = Path(parent) / name
            make_adapter(directory, shape, rank=RANK, seed=seed)
            await server.register(name, directory)
        return sum(file.stat().st_size for file in directory.iterdir())


async def _ask_all(
    server: MeasuredServer, base: str, names: list[str], times: dict[str, list[float]]
) -> None:
    """Ask for each adapter twice in a row, and then for the adapter before it.

    Of two slots the one that is idle for longest is given away. It is that of the adapter before,
    whose next request therefore finds it in host memory.
    """
    rng = np.random.default_rng()
    for index, name in enumerate(names):
        for model in (base, name, name, names[index - 1]):
            answer = await server.stream(Generation(model, random_prompt(rng, PROMPT_TOKENS), 1))
            times[answer.tier or BASE].append(1000 * (answer.ttft or 0.0))


async def _stream_on(
    server: MeasuredServer, base: str, ended: asyncio.Event, num_tokens: int
) -> None:
    rng = np.random.default_rng()
    while not ended.is_set():
        await server.stream(Generation(base, random_prompt(rng, PROMPT_TOKENS), num_tokens))


def report(times: Times, size_bytes: int) -> tuple[Table, dict[str, Any]]:
    """Return the table, and the same for programs."""
    table = Table("first token, ms", "", "requests", "median", "P90", "median over slot's")
    rows: dict[str, Any] = {}
    for condition, by_tier in times.items():
        warm = median(by_tier["slot"])
        rows[condition] = {}
        for tier in TIERS:
            values = by_tier.get(tier, [])
            if len(values) < MIN_REQUESTS:
                continue
            p50, p90 = median(values), quantiles(values, n=10)[-1]
            cells = (f"{p50:.0f}", f"{p90:.0f}", f"{p50 - warm:+.0f}")
            table.add_row(condition, tier, str(len(values)), *cells)
            row = {"requests": len(values), "median": p50, "p90": p90, "over_slot": p50 - warm}
            rows[condition][tier] = {key: round(value, 1) for key, value in row.items()}
    return table, {"scenario": "cold-start", "adapter_bytes": size_bytes, "first_token_ms": rows}
