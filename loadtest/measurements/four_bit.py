"""What a 4-bit base gives and takes: a server of it beside one of the BF16 base it was made from.

Speeds are taken on both servers in turn, round by round; each round's ratio is to BF16 in the same
round, and the result is the median over the rounds, so that a noisy machine hurts both alike.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from rich.table import Table

from loadtest.measurements.client import ChatAnswer, Client, Generation, random_prompt

ROUNDS = 3
PHASES = {
    # name: requests at once, tokens in, tokens out
    "decode": (16, 32, 64),
    "prefill": (4, 900, 1),
    "single stream": (1, 32, 64),
}
MAX_ANSWER_TOKENS = 64
NUM_BASE_EXAMPLES = 100
"""The base never answers word for word, and at length: a part of the examples shows that."""

BF16, FOUR_BIT = "bf16", "4-bit"


@dataclass(frozen=True)
class Server:
    """One of the two: what it answers to, and what it takes."""

    client: Client
    resident_mib: float
    """Memory of its own, right after it was ready."""
    weights_mib: float
    """Of the weight files."""


@dataclass(frozen=True)
class Task:
    """An adapter, and held-out examples of what it was trained for: questions and right answers."""

    adapter: Path
    examples: list[tuple[str, str]]


Values = dict[str, dict[str, list[float]]]
"""By row, then by server; one value, or one for each round."""


async def run(
    servers: dict[str, Server], tasks: dict[str, Task], progress: Callable[[str], None]
) -> tuple[Table, dict[str, Any]]:
    """Measure; return the table to show and the same as JSON.

    Raises:
        LoadTestError: a server doesn't take the adapters, or fails a request.
    """
    values: Values = defaultdict(dict)
    for name, server in servers.items():
        values["resident memory, MiB"][name] = [server.resident_mib]
        values["weight files, MiB"][name] = [server.weights_mib]
        for adapter, task in tasks.items():
            await server.client.register(adapter, task.adapter)
    clients = {name: server.client for name, server in servers.items()}
    base = await clients[BF16].base_name()
    rng = np.random.default_rng()
    for round_ in range(-1, ROUNDS):
        progress("warming up" if round_ < 0 else f"speed: round {round_ + 1} of {ROUNDS}")
        taken: Values = defaultdict(lambda: defaultdict(list)) if round_ < 0 else values
        for row, models in (("base", [base]), ("adapters", list(tasks))):
            for phase in PHASES:
                for name, client in clients.items():
                    speed = await _speed(client, phase, models, rng)
                    taken[f"{phase}, {row}, tokens/s"].setdefault(name, []).append(speed)
    await _quality(clients, base, tasks, progress, values)
    return _report(values)


async def _speed(client: Client, phase: str, models: list[str], rng: np.random.Generator) -> float:
    """Tokens a second; prompt tokens where only one is generated."""
    num_requests, tokens_in, tokens_out = PHASES[phase]
    requests = [
        Generation(models[index % len(models)], random_prompt(rng, tokens_in), tokens_out)
        for index in range(num_requests)
    ]
    counted = tokens_in if tokens_out == 1 else tokens_out
    return num_requests * counted / await client.time(requests)


async def _quality(
    clients: dict[str, Client],
    base: str,
    tasks: dict[str, Task],
    progress: Callable[[str], None],
    values: Values,
) -> None:
    """Share of answers right word for word; share of BF16's tokens that the base would choose."""
    by_base: list[ChatAnswer] = []
    for adapter, task in tasks.items():
        for model, examples in (
            (base, task.examples[:NUM_BASE_EXAMPLES]),
            (adapter, task.examples),
        ):
            row = f"{adapter}, exact match, {'base' if model == base else 'adapter'}"
            for name, client in clients.items():
                progress(f"{row}: {name}")
                answers = await _answers(client, model, examples)
                right = [a.text == e[1] for a, e in zip(answers, examples, strict=True)]
                values[row][name] = [mean(right)]
                if model == base and name == BF16:
                    by_base += answers
    for name, client in clients.items():
        progress(f"next tokens: {name}")
        values["base, same next token as BF16"][name] = [await _agreement(client, base, by_base)]


async def _answers(client: Client, model: str, examples: list[tuple[str, str]]) -> list[ChatAnswer]:
    questions = (client.chat(model, question, MAX_ANSWER_TOKENS) for question, _ in examples)
    return list(await asyncio.gather(*questions))


async def _agreement(client: Client, model: str, answers: list[ChatAnswer]) -> float:
    """Share of the answers' tokens that are the model's first choice after what stands before."""
    ranks = await asyncio.gather(*(client.ranks(model, a.prompt + a.tokens) for a in answers))
    chosen = [
        rank == 1
        for row, answer in zip(ranks, answers, strict=True)
        for rank in row[-len(answer.tokens) :]
    ]
    return mean(chosen)


def _report(values: Values) -> tuple[Table, dict[str, Any]]:
    table = Table("", "BF16", "4-bit", "ratio")
    rows: dict[str, Any] = {}
    for row, by_server in values.items():
        bf16, four_bit = by_server[BF16], by_server[FOUR_BIT]
        digits = 2 if "match" in row or "same" in row else 0
        cells = [f"{median(column):.{digits}f}" for column in (bf16, four_bit)]
        result = {BF16: median(bf16), FOUR_BIT: median(four_bit)}
        if not digits:
            result["ratio"] = median(b / a for a, b in zip(bf16, four_bit, strict=True))
            cells.append(f"{result['ratio']:.2f}")
        table.add_row(row, *cells)
        rows[row] = {name: round(value, 3) for name, value in result.items()}
    return table, {"scenario": "four-bit", "rounds": ROUNDS, "rows": rows}
