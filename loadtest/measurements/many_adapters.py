"""More adapters than slots: what many registered adapters cost, and how long requests wait.

Each comparison has two phases, which alternate. In the first comparison clients ask for all
adapters, or for as many as there are slots; Zipf's law says how often each is asked for. It is made
with 16 and 32 clients, and with twice as many as slots. In the second, twice as many clients as
slots ask for as many adapters as slots, or for twice as many.

More clients than slots can't all run at once unless they share adapters. Even if loads took no
time, 8 slots would keep about 9 of 16 clients busy at 1,000 adapters. With as many slots as
requests run at a time, they all can.
"""

from __future__ import annotations

import asyncio
import re
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
from loadtest.measurements.measured_server import Generation, MeasuredServer, random_prompt
from loadtest.outcome.request_outcome import Outcome

RANKS = (2, 4, 8)
REGISTRATIONS = 8
"""How many uploads run at a time."""

TOKENS_IN, TOKENS_OUT = 32, 32
ROUNDS = 2
CLIENTS = (16, 32)
POPULARITY_SECONDS = 8.0
"""For 16 clients. More clients take longer until each of them has an answer."""
QUANTUM_SECONDS = 16.0
"""Long enough for slots to change hands a few times."""


@dataclass
class Phase:
    """What the clients of one kind of phase saw, over all rounds."""

    answers: list[Outcome] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Return how many tokens a second came while the phase lasted."""
        return self.tokens / self.seconds

    def first_tokens(self) -> list[float]:
        """Return the seconds to the first token, of every answer."""
        return [answer.ttft for answer in self.answers if answer.ttft is not None]

    def in_slot(self) -> float:
        """Return the share of requests that found their adapter in a slot."""
        return sum(answer.tier == "slot" for answer in self.answers) / len(self.answers)


_SLOTS = re.compile(r"^vllm:max_gpu_lora_adapters\{.*\} ([\d.]+)$", re.MULTILINE)

Choose = Callable[[int], Iterator[str]]
"""Given a client's number, returns the models that it asks for, one after the other."""


@dataclass(frozen=True)
class Load:
    """How many clients ask, for how long, and for what."""

    clients: int
    seconds: float
    choose: Choose


def numbers_of_clients(slots: int) -> list[int]:
    """Return with how many clients the first comparison is made."""
    return sorted({*CLIENTS, 2 * slots})


def in_turns(slots: int) -> tuple[str, str]:
    """Return the names of two phases: as many adapters as slots, and twice as many."""
    return f"{slots} in {slots}", f"{2 * slots} in {slots}"


def popularity(clients: int) -> tuple[str, str]:
    """Return the names of two phases: with few adapters, with many."""
    return f"{clients} clients, few", f"{clients} clients, many"


def zipf(rng: np.random.Generator, names: list[str]) -> Iterator[str]:
    """Yield names at random, the n-th in proportion to 1/n."""
    weights = 1 / np.arange(1, len(names) + 1)
    weights /= weights.sum()
    while True:
        yield names[int(rng.choice(len(names), p=weights))]


async def run(
    server: MeasuredServer,
    shape: LlamaShape,
    progress: Callable[[str], None],
    *,
    num_adapters: int,
    slot_wait_seconds: float,
    popularity_seconds: float = POPULARITY_SECONDS,
    quantum_seconds: float = QUANTUM_SECONDS,
) -> tuple[Table, dict[str, Any]]:
    """Measure. Returns the table to show, and the same as JSON.

    Raises:
        LoadTestError: the server refuses an adapter, or has slots for half of the adapters.
    """
    names, slots = adapter_names(num_adapters), await num_slots(server)
    if num_adapters < 2 * slots:
        raise LoadTestError(f"{slots} slots need --adapters {2 * slots} or more")
    registering = time.perf_counter()
    num_new = await register(server, shape, names, progress)
    registering = time.perf_counter() - registering
    rng = np.random.default_rng(0)
    loads = {
        phase: Load(2 * slots, quantum_seconds, _in_turn(names[:number]))
        for phase, number in zip(in_turns(slots), (slots, 2 * slots), strict=True)
    }
    for clients in numbers_of_clients(slots):
        few, many = popularity(clients)
        seconds = popularity_seconds * clients / CLIENTS[0]
        loads[few] = Load(clients, seconds, lambda _: zipf(rng, names[:slots]))
        loads[many] = Load(clients, seconds, lambda _: zipf(rng, names))
    phases = {name: Phase() for name in loads}
    for round_ in range(ROUNDS):
        for name, load in loads.items():
            progress(f"round {round_ + 1} of {ROUNDS}: {name}")
            # Each phase finds the same adapters in the slots, not those of the phase before.
            await server.seconds_of(
                [Generation(n, random_prompt(rng, TOKENS_IN), 2) for n in names[:slots]]
            )
            await _clients(server, load, phases[name])
    table, result = report(phases, slots, num_adapters, slot_wait_seconds)
    if num_new:
        result["registered"] = {"adapters": num_new, "seconds": round(registering, 1)}
    return table, result


async def num_slots(server: MeasuredServer) -> int:
    """Return how many slots the server has.

    Raises:
        LoadTestError: its `/metrics` don't say so.
    """
    _, text = await server.client.call("GET", "/metrics")
    if (found := _SLOTS.search(text)) is None:
        raise LoadTestError(f"{server.client.url}/metrics doesn't say how many slots there are")
    return int(float(found[1]))


def adapter_names(number: int) -> list[str]:
    """Return the names of so many adapters, the most popular first."""
    return [f"bench-many-{index}" for index in range(number)]


async def register(
    server: MeasuredServer, shape: LlamaShape, names: list[str], progress: Callable[[str], None]
) -> int:
    """Upload the adapters that the server doesn't have yet. Returns how many these were."""
    known = await server.admin.model_names()
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
                await server.register(name, directory)
            num_done += 1
            progress(f"registering: {num_done} of {len(missing)}")

    async with asyncio.TaskGroup() as group:
        for _ in range(REGISTRATIONS):
            group.create_task(work())
    return len(missing)


def _in_turn(names: list[str]) -> Choose:
    """Let each client ask for one adapter all the time."""
    return lambda number: _always(names[number % len(names)])


def _always(name: str) -> Iterator[str]:
    while True:
        yield name


async def _clients(server: MeasuredServer, load: Load, phase: Phase) -> None:
    """Ask again after each answer. Requests that are open at the end still get their answers."""
    end = server.sender.now() + load.seconds
    answers: list[Outcome] = []

    async def ask_on(number: int) -> None:
        rng = np.random.default_rng()
        for model in load.choose(number):
            if server.sender.now() >= end:
                return
            try:
                request = Generation(model, random_prompt(rng, TOKENS_IN), TOKENS_OUT)
                answers.append(await server.stream(request))
            except LoadTestError as error:
                phase.failures.append(str(error))

    await asyncio.gather(*(ask_on(number) for number in range(load.clients)))
    phase.tokens += sum(came < end for answer in answers for came in answer.token_times)
    phase.seconds += load.seconds
    phase.answers += answers


def report(
    phases: dict[str, Phase], slots: int, num_adapters: int, slot_wait_seconds: float
) -> tuple[Table, dict[str, Any]]:
    """Return the table, and the same for programs."""
    table = Table("", f"{slots} adapters", f"{num_adapters} adapters", "ratio")
    throughput = {
        str(clients): _throughput(table, phases, clients) for clients in numbers_of_clients(slots)
    }
    table.add_section()
    first_token = _first_tokens(table, slots, phases)
    table.add_section()
    failures = [failure for phase in phases.values() for failure in phase.failures]
    num_requests = sum(len(phase.answers) for phase in phases.values()) + len(failures)
    longest = max(max(phase.first_tokens()) for phase in phases.values())
    table.add_row("failed requests", f"{len(failures)} of {num_requests}", "", "")
    table.add_row("longest first token of all, s", f"{longest:.1f}", "", "")
    return table, {
        "scenario": "many-adapters",
        "slots": slots,
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


def _first_tokens(table: Table, slots: int, phases: dict[str, Phase]) -> dict[str, float]:
    names = in_turns(slots)
    both = [phases[name].first_tokens() for name in names]
    milliseconds = [1000 * median(times) for times in both]
    ratio = milliseconds[1] / milliseconds[0]
    table.add_row(f"{2 * slots} clients", *names, "")
    table.add_row("median first token, ms", *(f"{ms:.0f}" for ms in milliseconds), f"{ratio:.2f}")
    table.add_row("longest, s", *(f"{max(times):.1f}" for times in both), "")
    values = zip(names, milliseconds, strict=True)
    return {name: round(ms, 1) for name, ms in values} | {"ratio": round(ratio, 3)}
