"""What the canary makes of answers, without an engine."""

import math
from dataclasses import replace

import pytest

from adapters_registry.records.catalog import VersionRecord
from adapters_registry.registry import Registry
from server.engine.interface import ProbeAnswer
from server.errors import Unavailable
from server.gate.smoke_test import ANSWER_TOKENS, TRIALS, runs_in_circles, try_out
from tests.server.fake_engine import FakeEngine


async def codes(engine: FakeEngine, version: VersionRecord, registry: Registry) -> list[str]:
    path = registry.content.path(version.digest)
    engine.slots.add(version.version_id)
    trial = await try_out(engine, version, path)
    return [reason.code for reason in trial.reasons]


async def test_a_version_that_changes_something_passes(
    engine: FakeEngine, home: VersionRecord, registry: Registry
) -> None:
    assert await codes(engine, home, registry) == []


async def test_the_smallest_change_counts_where_there_is_no_noise(
    engine: FakeEngine, home: VersionRecord, registry: Registry
) -> None:
    logprobs = engine.base_answer.logprobs
    engine.answer = replace(engine.base_answer, logprobs=(logprobs[0] + 1e-6, *logprobs[1:]))
    assert await codes(engine, home, registry) == []


@pytest.mark.parametrize("noise", [0.0, 0.3])
async def test_no_effect(
    engine: FakeEngine, home: VersionRecord, registry: Registry, noise: float
) -> None:
    engine.noise = noise
    engine.answer = engine.base_answer
    assert await codes(engine, home, registry) == ["canary_no_effect"]
    assert engine.num_asked == 3 * TRIALS


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
async def test_not_finite(
    engine: FakeEngine, home: VersionRecord, registry: Registry, value: float
) -> None:
    engine.answer = replace(engine.answer, logprobs=(*engine.answer.logprobs[:-1], value))
    assert await codes(engine, home, registry) == ["canary_not_finite"]


async def test_a_base_that_gives_nan_is_not_the_versions_fault(
    engine: FakeEngine, home: VersionRecord, registry: Registry
) -> None:
    engine.base_answer = replace(engine.base_answer, logprobs=(math.nan,) * 5)
    with pytest.raises(Unavailable):
        await codes(engine, home, registry)


def circling(*cycle: int, ended: bool = False) -> ProbeAnswer:
    tokens = (cycle * ANSWER_TOKENS)[:ANSWER_TOKENS]
    return ProbeAnswer(tokens, (-0.5,) * (3 + ANSWER_TOKENS), ended)


async def test_repetition(engine: FakeEngine, home: VersionRecord, registry: Registry) -> None:
    engine.answer = circling(7, 8)
    assert await codes(engine, home, registry) == ["canary_repetition"]


async def test_a_base_that_repeats_itself_too_excuses_the_version(
    engine: FakeEngine, home: VersionRecord, registry: Registry
) -> None:
    engine.answer = circling(7, 8)
    engine.base_answer = replace(circling(1), logprobs=(-0.1,) * (3 + ANSWER_TOKENS))
    assert await codes(engine, home, registry) == []


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (circling(1), True),
        (circling(1, 2), True),
        (circling(1, 2, 3, 4, 5, 6), True),
        (circling(1, 2, 3, 4, 5, 6, 7), False),
        (circling(1, ended=True), False),
        (circling(*range(24)), False),
        (ProbeAnswer((5, 5, 5), (-1.0,) * 6, ended=True), False),
        (ProbeAnswer((1, 2, 3, 4, *[9] * 20), (-1.0,) * 30, ended=False), True),
    ],
)
def test_running_in_circles(answer: ProbeAnswer, expected: bool) -> None:
    assert runs_in_circles(answer) is expected
