"""The smoke test: before a version may serve, it answers a probe beside the base.

It finds what the files alone do not show: weights that the engine accepts but that change nothing,
values that overflow in the layers, and answers that repeat themselves. In doubt a version passes.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, NamedTuple

from adapters_registry.errors import Reason
from adapters_registry.records.catalog import VersionRecord
from server.engine.interface import Engine, ProbeAnswer
from server.errors import Unavailable

PROMPTS = (
    "Write a short story about a lighthouse keeper and his dog.",
    "What is the capital of France?",
    "Explain how a bicycle works.",
)
ANSWER_TOKENS = 24
LOOP_TOKENS = 18
LONGEST_CYCLE = 6
"""An answer repeats itself if its last `LOOP_TOKENS` tokens repeat a cycle of at most this many."""

MARGIN = 2.0
"""How many times the noise a version must change the log-probabilities."""
TRIALS = 3


class SmokeTrial(NamedTuple):
    """What came out: the reasons why a version may not serve, and what it changes."""

    reasons: list[Reason]
    logprob_change: float | None = None
    """The largest change of a log-probability of the first prompt, in nats, if all are finite."""


async def try_out(engine: Engine, version: VersionRecord, path: Path) -> SmokeTrial:
    """Try a version that holds a slot. Returns the reasons why it may not serve, if there are any.

    Raises:
        Unavailable: the engine cannot answer now, which is not the version's fault.
    """
    for _ in range(TRIALS):
        base, again, answer = await _together(
            engine.ask(PROMPTS[0], 1, None, None),
            engine.ask(PROMPTS[0], 1, None, None),
            engine.ask(PROMPTS[0], ANSWER_TOKENS, version, path),
        )
        if not is_finite(base) or not is_finite(again):
            await engine.probe()  # an engine that answers with NaN is restarted
            raise Unavailable("the base answers with NaN")
        if not is_finite(answer):
            message = "its answer to a probe holds NaN or infinities"
            return SmokeTrial([Reason("canary_not_finite", message)])
        if changes(base, again, answer):
            break
    else:
        message = "it loads and changes nothing: on a probe its log-probabilities are the base's"
        return SmokeTrial([Reason("canary_no_effect", message)])
    change = _distance(base, answer)
    if runs_in_circles(answer) and await _only_it_does(engine, version, path):
        message = "it answers every probe by repeating itself, where the base doesn't"
        return SmokeTrial([Reason("canary_repetition", message)], change)
    return SmokeTrial([], change)


async def _only_it_does(engine: Engine, version: VersionRecord, path: Path) -> bool:
    """Return whether the version repeats itself on every probe, and the base does not."""
    answers = [engine.ask(prompt, ANSWER_TOKENS, version, path) for prompt in PROMPTS]
    if not all(map(runs_in_circles, await _together(*answers))):
        return False
    answers = [engine.ask(prompt, ANSWER_TOKENS, None, None) for prompt in PROMPTS]
    return not all(map(runs_in_circles, await _together(*answers)))


async def _together(*answers: Coroutine[Any, Any, ProbeAnswer]) -> list[ProbeAnswer]:
    """Return all answers. When one fails, the others are cancelled."""
    tasks = [asyncio.create_task(answer) for answer in answers]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def is_finite(answer: ProbeAnswer) -> bool:
    """Return whether every log-probability is finite."""
    return all(math.isfinite(logprob) for logprob in answer.logprobs)


def changes(base: ProbeAnswer, again: ProbeAnswer, answer: ProbeAnswer) -> bool:
    """Return whether a version moves the prompt's log-probabilities by more than noise.

    The noise is measured: it is the difference between two answers of the base to the same prompt
    in the same batch. Rows of one batch are computed alike, so the noise is mostly zero. Then any
    difference comes from the version.
    """
    return _distance(base, answer) > MARGIN * _distance(base, again)


def _distance(one: ProbeAnswer, other: ProbeAnswer) -> float:
    """Return the largest difference over the prompt (the answers' own tokens may be others)."""
    num_prompt = min(len(a.logprobs) - len(a.tokens) for a in (one, other))
    pairs = zip(one.logprobs[:num_prompt], other.logprobs[:num_prompt], strict=True)
    return max(abs(a - b) for a, b in pairs)


def runs_in_circles(answer: ProbeAnswer) -> bool:
    """Return whether an answer that did not end by itself ends in a short cycle, repeated."""
    tail = answer.tokens[-LOOP_TOKENS:]
    if answer.ended or len(tail) < LOOP_TOKENS:
        return False
    return any(tail[cycle:] == tail[:-cycle] for cycle in range(1, LONGEST_CYCLE + 1))
