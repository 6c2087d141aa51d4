"""What promotions do to running streams: 200 promotions, with streams on the adapter and beside it.

Phases with promotions and phases without alternate. Afterwards each distinct answer is read again
by the version that it names. Every token must be that version's own choice, up to near ties: the
last bits of a greedy answer depend on the batch. Before the load it is checked that the versions
choose different tokens. Otherwise no answer could be wrong.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
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
from loadtest.measurements.measured_server import Generation, MeasuredServer, random_prompt
from loadtest.outcome.request_outcome import Outcome
from loadtest.plan.schedule import DEFAULT_TENANT
from loadtest.report.series import total

ADAPTER, NEIGHBOUR = "bench-swap", "bench-neighbour"
SLOTS = 8
"""Of a server that is started for this."""
UPDATE_SIZE = 0.12
"""So large that each version answers differently from the first token on."""
SWAPPED_STREAMS, SWAPPED_TOKENS = 3, 16
BYSTANDERS = 3
PROMPT_TOKENS = 160
"""More than a block of the KV cache (128 on CPU): answers begin on a cached prefix."""

NEAR_TIE = 0.5
"""Nats by which a chosen token may be less likely than the likeliest."""
LEAST_FOREIGN = 0.25
"""Share of an answer's tokens that another version must find wrong, or the check is blind."""


@dataclass(frozen=True)
class Plan:
    """How much is done, and for how long."""

    num_versions: int = 8
    rank: int = 8
    num_promotions: int = 200
    num_rounds: int = 10
    quiet_seconds: float = 4.0
    """How long a phase without promotions lasts."""
    pause_seconds: float = 0.2
    """From one promotion to the next."""
    bystander_tokens: int = 256
    metrics_seconds: float = 1.1
    """Wait before `/metrics` is read: the server makes the page once a second."""


@dataclass(frozen=True)
class Promotion:
    """One move of `live`: when it was sent and answered, by the clock of the outcomes."""

    version: int
    sent_at: float
    acknowledged_at: float


@dataclass
class Observed:
    """What happened under load."""

    promotions: list[Promotion] = field(default_factory=list)
    swapped: list[Outcome] = field(default_factory=list)
    """Answers of the adapter whose versions are promoted."""
    bystanders: list[Outcome] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    quiet: list[tuple[float, float]] = field(default_factory=list)
    """Begin and end of each phase without promotions."""
    busy: list[tuple[float, float]] = field(default_factory=list)
    """Begin and end of each phase with promotions."""
    num_loads: float = 0


async def run(
    server: MeasuredServer,
    shape: LlamaShape,
    progress: Callable[[str], None],
    plan: Plan = Plan(),
) -> tuple[Table, dict[str, Any]]:
    """Measure. Returns the table to show, and the same as JSON.

    Raises:
        LoadTestError: the server refuses the adapters, or these answer too much alike.
    """
    progress(f"registering {plan.num_versions} versions of {ADAPTER}")
    versions = await _register(server, shape, plan)
    base = await server.admin.base()
    prompt = random_prompt(np.random.default_rng(1), PROMPT_TOKENS)
    progress("answers before the load")
    models = [f"{ADAPTER}@{version}" for version in versions]
    golden = [await server.stream(Generation(m, prompt, SWAPPED_TOKENS)) for m in models]
    foreign = await _foreign(server, prompt, golden)
    if min(foreign) < LEAST_FOREIGN:
        raise LoadTestError(f"the versions answer too much alike: {foreign}")
    observed = Observed()
    before = await _num_loads(server, plan)
    await _load(server, [base, NEIGHBOUR], prompt, versions, observed, progress, plan)
    observed.num_loads = await _num_loads(server, plan) - before
    progress("reading the answers again")
    num_tokens, num_wrong = await _wrong_tokens(
        server, prompt, golden + observed.swapped + observed.bystanders
    )
    return report(observed, num_tokens, num_wrong)


async def _register(server: MeasuredServer, shape: LlamaShape, plan: Plan) -> list[int]:
    """Upload the versions, and an adapter beside them. Returns the numbers of the versions."""
    seeds = iter(range(3 * plan.num_versions))
    versions = [
        await _register_next(server, shape, ADAPTER, seeds, plan.rank)
        for _ in range(plan.num_versions)
    ]
    await _register_next(server, shape, NEIGHBOUR, seeds, plan.rank)
    return versions


async def _register_next(
    server: MeasuredServer, shape: LlamaShape, name: str, seeds: Iterator[int], rank: int
) -> int:
    """Upload versions until one is accepted: the gate refuses those that repeat themselves.

    Returns the number of that version.
    """
    refusal = LoadTestError("no version was accepted")
    for seed in seeds:
        with tempfile.TemporaryDirectory() as parent:
            directory = Path(parent) / name
            make_adapter(directory, shape, rank=rank, seed=seed, size=UPDATE_SIZE)
            try:
                return await server.register(name, directory)
            except LoadTestError as error:
                refusal = error
    raise refusal


async def _load(
    server: MeasuredServer,
    neighbours: list[str],
    prompt: list[int],
    versions: list[int],
    observed: Observed,
    progress: Callable[[str], None],
    plan: Plan,
) -> None:
    """Run streams, and promote versions in every second phase."""
    ended = asyncio.Event()

    async def stream_on(request: Generation, answers: list[Outcome]) -> None:
        while not ended.is_set():
            try:
                answers.append(await server.stream(request))
            except LoadTestError as error:
                observed.failures.append(str(error))

    swapped = Generation(ADAPTER, prompt, SWAPPED_TOKENS)
    beside = itertools.cycle(Generation(m, prompt, plan.bystander_tokens) for m in neighbours)
    streams = [stream_on(swapped, observed.swapped) for _ in range(SWAPPED_STREAMS)]
    streams += [stream_on(next(beside), observed.bystanders) for _ in range(BYSTANDERS)]
    order = itertools.cycle(versions)
    # A first one, so that the live version is known when the streams begin.
    await _promote(server, next(order), observed)
    tasks = [asyncio.create_task(stream) for stream in streams]
    try:
        await asyncio.sleep(plan.quiet_seconds / 2)
        for round_ in range(plan.num_rounds):
            progress(f"round {round_ + 1} of {plan.num_rounds}")
            began = server.sender.now()
            await asyncio.sleep(plan.quiet_seconds)
            observed.quiet.append((began, began := server.sender.now()))
            for _ in range(plan.num_promotions // plan.num_rounds):
                await asyncio.gather(
                    _promote(server, next(order), observed), asyncio.sleep(plan.pause_seconds)
                )
            observed.busy.append((began, server.sender.now()))
        progress("last answers")
    finally:
        ended.set()
        await asyncio.gather(*tasks)


async def _promote(server: MeasuredServer, version: int, observed: Observed) -> None:
    sent_at = server.sender.now()
    try:
        await server.admin.promote(DEFAULT_TENANT, ADAPTER, version)
    except LoadTestError as error:
        observed.failures.append(str(error))
    observed.promotions.append(Promotion(version, sent_at, server.sender.now()))


async def _num_loads(server: MeasuredServer, plan: Plan) -> float:
    await asyncio.sleep(plan.metrics_seconds)
    page = await server.admin.page("/metrics")
    return total(page, "loraplex_adapter_load_seconds_count", outcome="ok")


async def _wrong_tokens(
    server: MeasuredServer, prompt: list[int], answers: list[Outcome]
) -> tuple[int, int]:
    """Return the number of tokens, and of those that their version wouldn't have chosen."""
    num_tokens = num_wrong = 0
    read: dict[tuple[str, tuple[int, ...]], int] = {}
    for answer in answers:
        key = (answer.version, tuple(answer.token_ids))
        if key not in read:
            read[key] = len(await _not_chosen(server, answer.version, prompt, answer))
        num_tokens, num_wrong = num_tokens + len(answer.token_ids), num_wrong + read[key]
    return num_tokens, num_wrong


async def _foreign(server: MeasuredServer, prompt: list[int], golden: list[Outcome]) -> list[float]:
    """Return for each version's answer the share of tokens that another wouldn't have chosen."""
    return [
        len(await _not_chosen(server, golden[index - 1].version, prompt, answer))
        / len(answer.token_ids)
        for index, answer in enumerate(golden)
    ]


async def _not_chosen(
    server: MeasuredServer, model: str, prompt: list[int], answer: Outcome
) -> list[int]:
    """Return the tokens of an answer that a model finds much less likely than its first choice."""
    ids = answer.token_ids
    text = [*prompt, *ids]
    entries = await server.prompt_logprobs(model, text, 1)
    own = zip(ids, entries[-len(ids) :], strict=True)
    return [token for token, entry in own if _shortfall(entry, token) > NEAR_TIE]


def _shortfall(entry: dict[str, dict[str, Any]], token: int) -> float:
    """Return by how many nats a token is less likely than the likeliest."""
    return float(max(choice["logprob"] for choice in entry.values()) - entry[str(token)]["logprob"])


def num_misdirected(answers: list[Outcome], promotions: list[Promotion]) -> int:
    """Return how many answers came from a version that `live` didn't point to at the time.

    Two versions are right between a promotion and its acknowledgement, and where a promotion falls
    between a request and its answer's headers.
    """
    return sum(_version(a) not in _live(a, promotions) for a in answers)


def _version(answer: Outcome) -> int:
    return int(answer.version.rsplit("@", 1)[-1])


def _live(answer: Outcome, promotions: list[Promotion]) -> set[int]:
    """Return the versions that `live` may have meant. Promotions are in order and don't overlap."""
    last_before = bisect_right(promotions, answer.sent, key=lambda p: p.acknowledged_at)
    possible = promotions[max(0, last_before - 1) :]
    return {p.version for p in possible if p.sent_at <= (answer.answered or answer.done)}


def gaps_within(answers: list[Outcome], phases: list[tuple[float, float]]) -> list[float]:
    """Return the milliseconds between tokens of a stream where the later one is in a phase."""
    return [
        1000 * (later - earlier)
        for answer in answers
        for earlier, later in itertools.pairwise(answer.token_times)
        if any(begin <= later < end for begin, end in phases)
    ]


def report(observed: Observed, num_tokens: int, num_wrong: int) -> tuple[Table, dict[str, Any]]:
    """Return the table, and the same for programs."""
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
