"""What a 4-bit base gives and takes: a server of it beside one of the BF16 base it was made from.

Speeds are taken on both servers in turn, round by round. Each round's ratio is to BF16 in the same
round, so that a noisy machine hurts both alike. The result is the median over the rounds.
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

from loadtest.measurements.measured_server import Generation, MeasuredServer, random_prompt

ROUNDS = 3
PHASES = {
    # name: requests at once, tokens in, tokens out
    "decode": (16, 32, 64),
    "prefill": (4, 900, 1),
    "single stream": (1, 32, 64),
}
MAX_ANSWER_TOKENS = 64
NUM_BASE_EXAMPLES = 100
"""The base's answers are long and never right word for word: a part of the examples shows that."""

BF16, FOUR_BIT = "bf16", "4-bit"


@dataclass(frozen=True)
class Contestant:
    """One of the two servers, and the memory that it takes."""

    server: MeasuredServer
    resident_mib: float
    """Memory of its own, right after it was ready."""
    weights_mib: float
    """Size of the weight files."""


@dataclass(frozen=True)
class Task:
    """An adapter, and held-out examples of what it was trained for."""

    adapter: Path
    examples: list[tuple[str, str]]
    """Questions, each with its right answer."""


@dataclass(frozen=True)
class ChatAnswer:
    """A chat answer: its text, and the token ids of prompt and answer."""

    text: str
    prompt: list[int]
    tokens: list[int]


Values = dict[str, dict[str, list[float]]]
"""By row, then by server: one value, or one for each round."""


async def run(
    contestants: dict[str, Contestant], tasks: dict[str, Task], progress: Callable[[str], None]
) -> tuple[Table, dict[str, Any]]:
    """Measure. Returns the table to show, and the same as JSON.

    Raises:
        LoadTestError: a server refuses an adapter, or a request fails.
    """
    values: Values = defaultdict(dict)
    for name, contestant in contestants.items():
        values["resident memory, MiB"][name] = [contestant.resident_mib]
        values["weight files, MiB"][name] = [contestant.weights_mib]
        for adapter, task in tasks.items():
            await contestant.server.register(adapter, task.adapter)
    servers = {name: contestant.server for name, contestant in contestants.items()}
    base = await servers[BF16].admin.base()
    rng = np.random.default_rng()
    for round_ in range(-1, ROUNDS):
        progress("warming up" if round_ < 0 else f"speed: round {round_ + 1} of {ROUNDS}")
        taken: Values = defaultdict(lambda: defaultdict(list)) if round_ < 0 else values
        for row, models in (("base", [base]), ("adapters", list(tasks))):
            for phase in PHASES:
                for name, server in servers.items():
                    speed = await _speed(server, phase, models, rng)
                    taken[f"{phase}, {row}, tokens/s"].setdefault(name, []).append(speed)
    await _quality(servers, base, tasks, progress, values)
    return _report(values)


async def _speed(
    server: MeasuredServer, phase: str, models: list[str], rng: np.random.Generator
) -> float:
    """Return tokens a second: prompt tokens where only one is generated."""
    num_requests, tokens_in, tokens_out = PHASES[phase]
    requests = [
        Generation(models[index % len(models)], random_prompt(rng, tokens_in), tokens_out)
        for index in range(num_requests)
    ]
    counted = tokens_in if tokens_out == 1 else tokens_out
    return num_requests * counted / await server.seconds_of(requests)


async def _quality(
    servers: dict[str, MeasuredServer],
    base: str,
    tasks: dict[str, Task],
    progress: Callable[[str], None],
    values: Values,
) -> None:
    """Add the share of answers that are right, and of BF16's tokens that each base chooses."""
    by_base: list[ChatAnswer] = []
    for adapter, task in tasks.items():
        for model, examples in (
            (base, task.examples[:NUM_BASE_EXAMPLES]),
            (adapter, task.examples),
        ):
            row = f"{adapter}, exact match, {'base' if model == base else 'adapter'}"
            for name, server in servers.items():
                progress(f"{row}: {name}")
                answers = await _answers(server, model, examples)
                right = [a.text == e[1] for a, e in zip(answers, examples, strict=True)]
                values[row][name] = [mean(right)]
                if model == base and name == BF16:
                    by_base += answers
    for name, server in servers.items():
        progress(f"next tokens: {name}")
        values["base, same next token as BF16"][name] = [await _agreement(server, base, by_base)]


async def _answers(
    server: MeasuredServer, model: str, examples: list[tuple[str, str]]
) -> list[ChatAnswer]:
    questions = (_chat(server, model, question) for question, _ in examples)
    return list(await asyncio.gather(*questions))


async def _chat(server: MeasuredServer, model: str, question: str) -> ChatAnswer:
    """Return the greedy answer to a question."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": MAX_ANSWER_TOKENS,
        "temperature": 0,
        "return_token_ids": True,
    }
    answer = await server.post("/v1/chat/completions", body)
    choice = answer["choices"][0]
    text = (choice["message"]["content"] or "").strip()
    return ChatAnswer(text, answer["prompt_token_ids"], choice["token_ids"])


async def _agreement(server: MeasuredServer, model: str, answers: list[ChatAnswer]) -> float:
    """Return the share of the answers' tokens that the model likes best at their places."""
    ranks = await asyncio.gather(*(_ranks(server, model, a.prompt + a.tokens) for a in answers))
    chosen = [
        rank == 1
        for row, answer in zip(ranks, answers, strict=True)
        for rank in row[-len(answer.tokens) :]
    ]
    return mean(chosen)


async def _ranks(server: MeasuredServer, model: str, tokens: list[int]) -> list[int]:
    """Return for each token after the first how many tokens the model likes at least as well."""
    entries = await server.prompt_logprobs(model, tokens, 0)
    return [entry[str(token)]["rank"] for token, entry in zip(tokens[1:], entries, strict=True)]


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
