"""How long the first token takes, by where the server finds the adapter: slot, host, disk, origin.

Adapters of 10 MB are asked for in an order that leads to every tier; which one a request met is
what its response says (`x-adapter-tier`). Once one after the other on an otherwise idle server,
once beside streams of the base; requests to the base are the measure of a server without adapters.
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
from loadtest.measurements.client import Client, Generation, random_prompt

NUM_ADAPTERS = 12
RANK = 8
SLOTS, HOST_BUDGET = 2, 4
"""What a server started for this gets, so that 12 adapters meet every tier."""
ROUNDS = 3
STREAMS, STREAM_TOKENS = 4, 256
PROMPT_TOKENS = 32
MIN_REQUESTS = 5
"""Fewer in a tier say nothing: it is left out."""

BASE = "base, no adapter"
TIERS = (BASE, "slot", "host", "disk", "origin")
CONDITIONS = ("idle server", f"beside {STREAMS} streams")

Times = dict[str, dict[str, list[float]]]
"""Milliseconds to the first token, by condition and tier."""


async def run(
    client: Client, shape: LlamaShape, progress: Callable[[str], None]
) -> tuple[Table, dict[str, Any]]:
    """Measure; return the table to show and the same as JSON.

    Raises:
        LoadTestError: the server doesn't take the adapters, or fails a request.
    """
    base, names = await client.base_name(), [f"bench-cold-{n}" for n in range(NUM_ADAPTERS)]
    progress(f"registering {NUM_ADAPTERS} adapters of rank {RANK}")
    size_bytes = await _register(client, shape, names)
    times: Times = {condition: defaultdict(list) for condition in CONDITIONS}
    await _ask_all(client, base, names, defaultdict(list))  # warms up
    for round_ in range(ROUNDS):
        progress(f"round {round_ + 1} of {ROUNDS}: {CONDITIONS[0]}")
        await _ask_all(client, base, names, times[CONDITIONS[0]])
        progress(f"round {round_ + 1} of {ROUNDS}: {CONDITIONS[1]}")
        async with asyncio.TaskGroup() as group:
            ended = asyncio.Event()
            for _ in range(STREAMS):
                group.create_task(_stream_on(client, base, ended))
            await _ask_all(client, base, names, times[CONDITIONS[1]])
            ended.set()
    return report(times, size_bytes)


async def _register(client: Client, shape: LlamaShape, names: list[str]) -> int:
    """Upload the adapters; the size of one."""
    with tempfile.TemporaryDirectory() as parent:
        for seed, name in enumerate(names):
            directory = Path(parent) / name
            make_adapter(directory, shape, rank=RANK, seed=seed)
            await client.register(name, directory)
        return sum(file.stat().st_size for file in directory.iterdir())


async def _ask_all(
    client: Client, base: str, names: list[str], times: dict[str, list[float]]
) -> None:
    """Each adapter after all others, again, and then the one before it.

    Of two slots the one idle for longest is given away: that of the adapter before, which so stays
    in host memory only.
    """
    rng = np.random.default_rng()
    for index, name in enumerate(names):
        for model in (base, name, name, names[index - 1]):
            answer = await client.stream(Generation(model, random_prompt(rng, PROMPT_TOKENS), 1))
            times[answer.tier or BASE].append(1000 * answer.first_token_seconds)


async def _stream_on(client: Client, base: str, ended: asyncio.Event) -> None:
    rng = np.random.default_rng()
    while not ended.is_set():
        await client.stream(Generation(base, random_prompt(rng, PROMPT_TOKENS), STREAM_TOKENS))


def report(times: Times, size_bytes: int) -> tuple[Table, dict[str, Any]]:
    """The table, and the same for programs."""
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
