"""What a promotion does to others: 200 of them while streams run on the adapter and beside it.

Phases with promotions and phases without take turns. Afterwards each distinct answer is read again
by the version that it names: every token must be that version's own choice, up to near ties (the
last bits of a greedy answer depend on the batch). That no other version would have chosen the same
tokens is checked likewise, so that this can fail.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

import numpy as np
from rich.table import Table

from loadtest.drive.random_adapters import LlamaShape, make_adapter
from loadtest.errors import LoadTestError
from loadtest.measurements.client import Client, Generation, Streamed, random_prompt

ADAPTER, NEIGHBOUR = "bench-swap", "bench-neighbour"
NUM_VERSIONS = 8
RANK = 8
SLOTS = 8
"""Of the server that is started for this."""
UPDATE_SIZE = 0.12
"""Loud: each version answers differently from the first token on."""

PROMOTIONS, ROUNDS = 200, 10
QUIET_SECONDS = 4.0
PAUSE_SECONDS = 0.2
"""From one promotion to the next."""
SWAPPED_STREAMS, SWAPPED_TOKENS = 3, 16
BYSTANDERS, BYSTANDER_TOKENS = 3, 256
PROMPT_TOKENS = 160
"""More than a block of the KV cache (128 on CPU): answers begin on a cached prefix."""

NEAR_TIE = 0.5
"""Nats by which a chosen token may be less likely than the likeliest."""
LEAST_FOREIGN = 0.25
"""Share of an answer's tokens that another version must call wrong, or the check sees nothing."""


@dataclass(frozen=True)
class Promotion:
    """One flip of `live`: sent, and answered, in seconds of the answers' clock."""

    version: int
    sent_at: float
    acknowledged_at: float


@dataclass
class Observed:
    """What happened under load."""

    promotions: list[Promotion] = field(default_factory=list)
    swapped: list[Streamed] = field(default_factory=list)
    bystanders: list[Streamed] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    quiet: list[tuple[float, float]] = field(default_factory=list)
    """Beginnings and ends of the phases without promotions."""
    busy: list[tuple[float, float]] = field(default_factory=list)
    num_loads: float = 0


async def run(
    client: Client, shape: LlamaShape, progress: Callable[[str], None]
) -> tuple[Table, dict[str, Any]]:
    """Measure; return the table to show and the same as JSON.

    Raises:
        LoadTestError: the server doesn't take the adapters, or these are too alike.
    """
    progress(f"registering {NUM_VERSIONS} versions of {ADAPTER}")
    versions = await _register(client, shape)
    base = await client.base_name()
    prompt = random_prompt(np.random.default_rng(1), PROMPT_TOKENS)
    progress("answers before the load")
    models = [f"{ADAPTER}@{version}" for version in versions]
    golden = [await client.stream(Generation(m, prompt, SWAPPED_TOKENS)) for m in models]
    foreign = await _foreign(client, golden)
    if min(foreign) < LEAST_FOREIGN:
        raise LoadTestError(f"the versions answer too much alike: {foreign}")
    observed = Observed()
    before = await _num_loads(client)
    await _load(client, [base, NEIGHBOUR], prompt, versions, observed, progress)
    observed.num_loads = await _num_loads(client) - before
    progress("reading the answers again")
    num_tokens, num_wrong = await _wrong_tokens(
        client, golden + observed.swapped + observed.bystanders
    )
    return report(observed, num_tokens, num_wrong)


async def _register(client: Client, shape: LlamaShape) -> list[int]:
    """Upload the versions, and a neighbour."""
    seeds = iter(range(3 * NUM_VERSIONS))
    versions = [await _register_next(client, shape, ADAPTER, seeds) for _ in range(NUM_VERSIONS)]
    await _register_next(client, shape, NEIGHBOUR, seeds)
    return versions


async def _register_next(client: Client, shape: LlamaShape, name: str, seeds: Iterator[int]) -> int:
    """Upload the next version that the gate takes; it refuses those that babble."""
    refusal = LoadTestError("no version was accepted")
    for seed in seeds:
        with tempfile.TemporaryDirectory() as parent:
            directory = Path(parent) / name
            make_adapter(directory, shape, rank=RANK, seed=seed, size=UPDATE_SIZE)
            try:
                return await client.register(name, directory)
            except LoadTestError as error:
                refusal = error
    raise refusal


async def _load(
    client: Client,
    neighbours: list[str],
    prompt: list[int],
    versions: list[int],
    observed: Observed,
    progress: Callable[[str], None],
) -> None:
    """Streams, and promotions in every second phase."""
    ended = asyncio.Event()

    async def stream_on(request: Generation, answers: list[Streamed]) -> None:
        while not ended.is_set():
            try:
                answers.append(await client.stream(request))
            except LoadTestError as error:
                observed.failures.append(str(error))

    swapped = Generation(ADAPTER, prompt, SWAPPED_TOKENS)
    beside = itertools.cycle(Generation(m, prompt, BYSTANDER_TOKENS) for m in neighbours)
    streams = [stream_on(swapped, observed.swapped) for _ in range(SWAPPED_STREAMS)]
    streams += [stream_on(next(beside), observed.bystanders) for _ in range(BYSTANDERS)]
    turns = itertools.cycle(versions)
    await _promote(client, next(turns), observed)  # so that it is known who was live before
    tasks = [asyncio.create_task(stream) for stream in streams]
    try:
        await asyncio.sleep(QUIET_SECONDS / 2)
        for round_ in range(ROUNDS):
            progress(f"round {round_ + 1} of {ROUNDS}")
            began = time.perf_counter()
            await asyncio.sleep(QUIET_SECONDS)
            observed.quiet.append((began, began := time.perf_counter()))
            for _ in range(PROMOTIONS // ROUNDS):
                await asyncio.gather(
                    _promote(client, next(turns), observed), asyncio.sleep(PAUSE_SECONDS)
                )
            observed.busy.append((began, time.perf_counter()))
        progress("last answers")
    finally:
        ended.set()
        await asyncio.gather(*tasks)


async def _promote(client: Client, version: int, observed: Observed) -> None:
    sent_at = time.perf_counter()
    try:
        await client.promote(ADAPTER, version)
    except LoadTestError as error:
        observed.failures.append(str(error))
    observed.promotions.append(Promotion(version, sent_at, time.perf_counter()))


async def _num_loads(client: Client) -> float:
    return await client.metric("loraplex_adapter_load_seconds_count", outcome="ok")


async def _wrong_tokens(client: Client, answers: list[Streamed]) -> tuple[int, int]:
    """How many tokens, and how many of them their version wouldn't have chosen."""
    num_tokens = num_wrong = 0
    read: dict[tuple[str, tuple[int, ...]], int] = {}
    for answer in answers:
        key = (answer.model, tuple(answer.tokens))
        if key not in read:
            read[key] = len(await _not_chosen(client, answer.model, answer))
        num_tokens, num_wrong = num_tokens + len(answer.tokens), num_wrong + read[key]
    return num_tokens, num_wrong


async def _foreign(client: Client, golden: list[Streamed]) -> list[float]:
    """For each version's answer, the share of tokens that the next one wouldn't have chosen."""
    return [
        len(await _not_chosen(client, golden[index - 1].model, answer)) / len(answer.tokens)
        for index, answer in enumerate(golden)
    ]


async def _not_chosen(client: Client, model: str, answer: Streamed) -> list[int]:
    shortfalls = await client.shortfalls(model, [*answer.prompt, *answer.tokens])
    own = zip(answer.tokens, shortfalls[-len(answer.tokens) :], strict=True)
    return [token for token, shortfall in own if shortfall > NEAR_TIE]


def num_misdirected(answers: list[Streamed], promotions: list[Promotion]) -> int:
    """Answers of a version that `live` didn't point to while the request was on its way.

    Between sending a promotion and its answer both versions are right, as they are where a
    promotion falls between a request and its answer's headers.
    """
    return sum(_version(a) not in _live(a, promotions) for a in answers)


def _version(answer: Streamed) -> int:
    return int(answer.model.rsplit("@", 1)[-1])


def _live(answer: Streamed, promotions: list[Promotion]) -> set[int]:
    """Whom `live` may have meant; promotions are in order, one after the other."""
    last_before = bisect_right(promotions, answer.asked_at, key=lambda p: p.acknowledged_at)
    possible = promotions[max(0, last_before - 1) :]
    return {p.version for p in possible if p.sent_at <= answer.answered_at}


def gaps_within(answers: list[Streamed], phases: list[tuple[float, float]]) -> list[float]:
    """Milliseconds between tokens of one stream, where the later one came within a phase."""
    return [
        1000 * (later - earlier)
        for answer in answers
        for earlier, later in itertools.pairwise(answer.arrivals)
        if any(begin <= later < end for begin, end in phases)
    ]


def report(observed: Observed, num_tokens: int, num_wrong: int) -> tuple[Table, dict[str, Any]]:
    """The table, and the same for programs."""
    quiet, busy = (gaps_within(observed.bystanders, p) for p in (observed.quiet, observed.busy))
    counts = {
        "promotions": len(observed.promotions) - 1,  # the first came before the load
        "loads": int(observed.num_loads),
        "requests": len(observed.swapped) + len(observed.bystanders),
        "failed": len(observed.failures),
        "of another version than live": num_misdirected(observed.swapped, observed.promotions),
        "tokens": num_tokens,
        "wrong tokens": num_wrong,
    }
    table = Table("", "without promotions", "with promotions", "ratio")
    for name, count in counts.items():
        table.add_row(name, "", str(count))
    gaps = {}
    for name, value in (("P50", _P50), ("P90", _P90), ("P99", _P99), ("longest", max)):
        without, with_ = value(quiet), value(busy)
        gaps[name] = {"without": round(without, 1), "with": round(with_, 1)}
        gaps[name]["ratio"] = round(with_ / without, 3)
        cells = (f"{without:.1f}", f"{with_:.1f}", f"{with_ / without:.2f}")
        table.add_row(f"bystanders' gaps, {name}, ms", *cells)
    result = {"scenario": "hot-swap", "counts": counts, "gaps_ms": gaps}
    return table, result | {"failures": observed.failures[:10]}


def _percentile(percent: int) -> Callable[[list[float]], float]:
    return lambda values: quantiles(values, n=100)[percent - 1]


_P50, _P90, _P99 = map(_percentile, (50, 90, 99))
