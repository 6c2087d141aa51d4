"""More adapters than slots: what many registered ones cost, and how long others are waited for.

Comparisons of two phases each, which take turns: the same clients over all adapters or over as many
as there are slots (Zipf's law says who is asked how often), for as many clients as slots and for
twice as many; and 16 clients of 8 adapters in 8 slots beside 16 of 16. Apart from that: does memory
grow as adapters change places?

Twice as many clients as slots can't all run at once unless they share adapters: even if loads took
no time, 8 slots would keep about 9 of 16 busy at 1,000 adapters.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.table import Table

from loadtest.drive.random_adapters import LlamaShape, make_adapter
from loadtest.errors import LoadTestError
from loadtest.measurements.client import Client, Generation, Streamed, random_prompt

SLOTS = 8
"""What a server started for this has; one given must have as many."""
HOST_BUDGET, SWAPS_HOST_BUDGET = 64, 16
"""Of a server started for this; with the second most swaps are loads from disk."""
RANKS = (2, 4, 8)
REGISTRATIONS = 8
"""At a time."""

CLIENTS = 16
"""Of the turns."""
TOKENS_IN, TOKENS_OUT = 32, 32
ROUNDS = 2
POPULARITY_SECONDS = 8.0
TURNS_SECONDS = 16.0
"""Long enough for slots to change hands a few times."""

SWAP_CLIENTS = 8
MEMORY_SAMPLES = 10


@dataclass
class Phase:
    """What the clients of one kind of phase saw, over all rounds."""

    answers: list[Streamed] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens that came while the phase lasted."""
        return self.tokens / self.seconds

    def first_tokens(self) -> list[float]:
        """Seconds to the first token, of every answer."""
        return [answer.first_token_seconds for answer in self.answers]

    def in_slot(self) -> float:
        """Share of requests that found their adapter in its slot."""
        return sum(answer.tier == "slot" for answer in self.answers) / len(self.answers)


EIGHT, SIXTEEN = "8 in 8", "16 in 8"

Choose = Callable[[int], Iterator[str]]
"""What a client (by number) asks for, one after the other."""


@dataclass(frozen=True)
class Load:
    """So many clients, for so long."""

    clients: int
    seconds: float
    choose: Choose


POPULARITY_CLIENTS = (SLOTS, 2 * SLOTS)


def popularity(clients: int) -> tuple[str, str]:
    """The names of two phases: few adapters, many."""
    return f"{clients} clients, few", f"{clients} clients, many"


def zipf(rng: np.random.Generator, names: list[str]) -> Iterator[str]:
    """Names at random; the n-th is asked for in proportion to 1/n."""
    weights = 1 / np.arange(1, len(names) + 1)
    weights /= weights.sum()
    while True:
        yield names[int(rng.choice(len(names), p=weights))]


async def run(
    client: Client,
    shape: LlamaShape,
    progress: Callable[[str], None],
    *,
    num_adapters: int,
    slot_wait_seconds: float,
) -> tuple[Table, dict[str, Any]]:
    """Measure; return the table to show and the same as JSON.

    Raises:
        LoadTestError: the server doesn't take the adapters.
    """
    names = [f"bench-many-{number}" for number in range(num_adapters)]
    registering = time.perf_counter()
    num_new = await register(client, shape, names, progress)
    registering = time.perf_counter() - registering
    rng = np.random.default_rng(0)
    loads = {
        EIGHT: Load(CLIENTS, TURNS_SECONDS, lambda number: _always(names[number % 8])),
        SIXTEEN: Load(CLIENTS, TURNS_SECONDS, lambda number: _always(names[number % 16])),
    }
    for clients in POPULARITY_CLIENTS:
        few, many = popularity(clients)
        loads[few] = Load(clients, POPULARITY_SECONDS, lambda _: zipf(rng, names[:SLOTS]))
        loads[many] = Load(clients, POPULARITY_SECONDS, lambda _: zipf(rng, names))
    phases = {name: Phase() for name in loads}
    for round_ in range(ROUNDS):
        for name, load in loads.items():
            progress(f"round {round_ + 1} of {ROUNDS}: {name}")
            # Each phase finds the same adapters in the slots, not those of the phase before.
            await client.time(
                [Generation(n, random_prompt(rng, TOKENS_IN), 2) for n in names[:SLOTS]]
            )
            await _clients(client, load, phases[name])
    table, result = report(phases, num_adapters, slot_wait_seconds)
    if num_new:
        result["registered"] = {"adapters": num_new, "seconds": round(registering, 1)}
    return table, result


async def register(
    client: Client, shape: LlamaShape, names: list[str], progress: Callable[[str], None]
) -> int:
    """Upload the adapters that the server doesn't have yet; how many these were."""
    known = await client.adapter_names()
    missing = [(seed, name) for seed, name in enumerate(names) if name not in known]
    queue = iter(missing)
    num_done = 0

    async def work() -> None:
        nonlocal num_done
        for seed, name in queue:
            with tempfile.TemporaryDirectory() as parent:
                rank = RANKS[seed % len(RANKS)]
                directory = Path(parent) / name
                await asyncio.to_thread(make_adapter, directory, shape, rank=rank, seed=seed)
                await client.register(name, directory)
            num_done += 1
            progress(f"registering: {num_done} of {len(missing)}")

    async with asyncio.TaskGroup() as group:
        for _ in range(REGISTRATIONS):
            group.create_task(work())
    return len(missing)


def _always(name: str) -> Iterator[str]:
    while True:
        yield name


async def _clients(client: Client, load: Load, phase: Phase) -> None:
    """Clients that ask again after each answer; those that have asked get their answer."""
    end = time.perf_counter() + load.seconds
    answers: list[Streamed] = []

    async def ask_on(number: int) -> None:
        rng = np.random.default_rng()
        for model in load.choose(number):
            if time.perf_counter() >= end:
                return
            try:
                request = Generation(model, random_prompt(rng, TOKENS_IN), TOKENS_OUT)
                answers.append(await client.stream(request))
            except LoadTestError as error:
                phase.failures.append(str(error))

    await asyncio.gather(*(ask_on(number) for number in range(load.clients)))
    phase.tokens += sum(arrival < end for answer in answers for arrival in answer.arrivals)
    phase.seconds += load.seconds
    phase.answers += answers


def report(
    phases: dict[str, Phase], num_adapters: int, slot_wait_seconds: float
) -> tuple[Table, dict[str, Any]]:
    """The table, and the same for programs."""
    table = Table("", f"{SLOTS} adapters", f"{num_adapters} adapters", "ratio")
    throughput = {
        str(clients): _throughput(table, phases, clients) for clients in POPULARITY_CLIENTS
    }
    table.add_section()
    first_token = _first_tokens(table, phases[EIGHT], phases[SIXTEEN])
    table.add_section()
    failures = [failure for phase in phases.values() for failure in phase.failures]
    num_requests = sum(len(phase.answers) for phase in phases.values()) + len(failures)
    longest = max(max(phase.first_tokens()) for phase in phases.values())
    table.add_row("failed requests", f"{len(failures)} of {num_requests}", "", "")
    table.add_row("longest first token of all, s", f"{longest:.1f}", "", "")
    return table, {
        "scenario": "many-adapters",
        "adapters": num_adapters,
        "throughput_by_clients": throughput,
        "median_first_token_ms": first_token,
        "longest_first_token_seconds": round(longest, 2),
        "slot_wait_seconds": slot_wait_seconds,
        "requests": num_requests,
        "failed": len(failures),
        "failures": failures[:10],
    }


def _throughput(table: Table, phases: dict[str, Phase], clients: int) -> dict[str, float]:
    few, many = (phases[name] for name in popularity(clients))
    ratio = many.tokens_per_second / few.tokens_per_second
    cells = (f"{p.tokens_per_second:.0f} ({p.in_slot():.0%})" for p in (few, many))
    table.add_row(f"tokens/s (found in a slot), {clients} clients", *cells, f"{ratio:.2f}")
    return {
        "few": round(few.tokens_per_second, 1),
        "many": round(many.tokens_per_second, 1),
        "ratio": round(ratio, 3),
        "many_in_slot": round(many.in_slot(), 3),
    }


def _first_tokens(table: Table, eight: Phase, sixteen: Phase) -> dict[str, float]:
    both = (eight.first_tokens(), sixteen.first_tokens())
    milliseconds = [1000 * median(times) for times in both]
    ratio = milliseconds[1] / milliseconds[0]
    table.add_row(f"{CLIENTS} clients", EIGHT, SIXTEEN, "")
    table.add_row("median first token, ms", *(f"{ms:.0f}" for ms in milliseconds), f"{ratio:.2f}")
    table.add_row("longest, s", *(f"{max(times):.1f}" for times in both), "")
    values = zip((EIGHT, SIXTEEN), milliseconds, strict=True)
    return {name: round(ms, 1) for name, ms in values} | {"ratio": round(ratio, 3)}


async def run_swaps(
    client: Client,
    shape: LlamaShape,
    progress: Callable[[str], None],
    *,
    num_adapters: int,
    num_swaps: int,
    memory_bytes: Callable[[], int],
) -> tuple[Table, dict[str, Any]]:
    """Have adapters take each other's slots, and look at the server's memory meanwhile.

    Raises:
        LoadTestError: the server doesn't take the adapters, or fails a request.
    """
    names = [f"bench-many-{number}" for number in range(num_adapters)]
    await register(client, shape, names, progress)
    rng, samples = np.random.default_rng(0), [(0, memory_bytes())]
    found: dict[str, int] = {}
    num_done = 0

    async def ask_on() -> None:
        nonlocal num_done
        while num_done < num_swaps:
            name = names[int(rng.integers(len(names)))]
            answer = await client.stream(Generation(name, random_prompt(rng, TOKENS_IN), 1))
            found[str(answer.tier)] = found.get(str(answer.tier), 0) + 1
            if answer.tier == "slot":
                continue
            num_done += 1
            if num_done % max(1, num_swaps // MEMORY_SAMPLES) == 0:
                samples.append((num_done, memory_bytes()))
                progress(f"{num_done} of {num_swaps} swaps: {samples[-1][1] >> 20} MiB")

    async with asyncio.TaskGroup() as group:
        for _ in range(SWAP_CLIENTS):
            group.create_task(ask_on())
    return report_swaps(samples, found)


def report_swaps(
    samples: list[tuple[int, int]], found: dict[str, int]
) -> tuple[Table, dict[str, Any]]:
    """The table, and the same for programs; growth is from the first tenth on: before, what
    is to be held (host memory, threads, caches) is taken for the first time."""
    table = Table("swaps", "memory of its own, MiB")
    for number, size in samples:
        table.add_row(str(number), str(size >> 20))
    growth = samples[-1][1] / samples[1][1] - 1
    table.add_section()
    table.add_row(f"growth after the first {samples[1][0]}", f"{growth:+.1%}")
    mib = {str(number): size >> 20 for number, size in samples}
    result = {"scenario": "many-adapters", "memory_mib": mib, "growth": round(growth, 4)}
    return table, result | {"found": found}
