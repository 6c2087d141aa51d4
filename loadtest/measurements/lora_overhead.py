"""What adapters cost: base requests against those with one, four and sixteen adapters.

Everything runs on one server, round by round. Each round's ratio is to the base in the same round,
so that a noisy machine hurts both alike. The result is the median over the rounds.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.table import Table

from loadtest.drive.random_adapters import LlamaShape, make_adapter
from loadtest.measurements.measured_server import Generation, MeasuredServer, random_prompt

NUM_ADAPTERS = 16
RANK = 8
ROUNDS = 4
BUDGET_SECONDS = 80.0
"""A round that would end later isn't begun. One round is always measured."""

NUMBERS = (1, 4, 16)
"""How many adapters are asked beside the base."""
PHASES = {
    # name: requests at once, tokens in, tokens out, numbers of adapters
    "decode": (16, 32, 64, NUMBERS),
    "prefill": (4, 900, 1, NUMBERS[:2]),
    "single stream": (1, 32, 64, NUMBERS[:1]),
}

Speeds = dict[str, dict[int, list[float]]]
"""Tokens a second of each round, by phase and number of adapters (0: the base)."""


async def run(
    server: MeasuredServer, shape: LlamaShape, progress: Callable[[str], None]
) -> tuple[Table, dict[str, Any]]:
    """Measure. Returns the table to show, and the same as JSON.

    Raises:
        LoadTestError: the server refuses an adapter, or a request fails.
    """
    start = time.monotonic()
    base = await server.admin.base()
    progress(f"registering {NUM_ADAPTERS} adapters of rank {RANK}")
    names = await register_adapters(server, shape)
    rng = np.random.default_rng()
    speeds: Speeds = defaultdict(lambda: defaultdict(list))
    progress("warming up")
    await server.seconds_of(
        [Generation(name, random_prompt(rng, 32), 2) for name in [base, *names]]
    )
    for round_ in range(ROUNDS):
        began = time.monotonic()
        for phase in PHASES:
            progress(f"round {round_ + 1} of {ROUNDS}: {phase}")
            await _measure(server, phase, base, names, rng, speeds)
        now = time.monotonic()
        if now - start + (now - began) > BUDGET_SECONDS:
            break
    return _report(speeds)


async def register_adapters(server: MeasuredServer, shape: LlamaShape) -> list[str]:
    """Upload the adapters that the server doesn't have yet. Returns the names of all.

    Raises:
        LoadTestError: the server refuses one.
    """
    known = await server.admin.model_names()
    names = [f"bench-{index}" for index in range(NUM_ADAPTERS)]
    with tempfile.TemporaryDirectory() as parent:
        for seed, name in enumerate(names):
            if name not in known:
                make_adapter(Path(parent) / name, shape, rank=RANK, seed=seed)
                await server.register(name, Path(parent) / name)
    return names


async def _measure(
    server: MeasuredServer,
    phase: str,
    base: str,
    names: list[str],
    rng: np.random.Generator,
    speeds: Speeds,
) -> None:
    num_requests, tokens_in, tokens_out, numbers = PHASES[phase]
    for number in (0, *numbers):
        models = names[:number] or [base]
        requests = [
            Generation(models[index % len(models)], random_prompt(rng, tokens_in), tokens_out)
            for index in range(num_requests)
        ]
        counted = tokens_in if tokens_out == 1 else tokens_out
        speeds[phase][number].append(num_requests * counted / await server.seconds_of(requests))


def _report(speeds: Speeds) -> tuple[Table, dict[str, Any]]:
    table = Table("", "base", *(f"{n} adapter{'s' * (n > 1)}" for n in NUMBERS))
    result: dict[str, Any] = {"scenario": "lora-overhead", "rank": RANK, "phases": {}}
    for phase, by_number in speeds.items():
        cells, values = [], {}
        for number in (0, *NUMBERS):
            if number not in by_number:
                cells.append("")
                continue
            speed = median(by_number[number])
            ratio = median(
                ours / base for ours, base in zip(by_number[number], by_number[0], strict=True)
            )
            cells.append(f"{speed:.0f}" + (f" ({ratio:.2f})" if number else ""))
            values[str(number)] = {"tokens_per_second": round(speed, 1), "ratio": round(ratio, 3)}
        table.add_row(f"{phase}, tokens/s", *cells)
        result["phases"][phase] = values
    result["rounds"] = len(next(iter(speeds.values()))[0])
    return table, result
