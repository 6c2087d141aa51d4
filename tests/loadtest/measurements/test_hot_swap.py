"""Promotions under load: what the scenario calls failed, misdirected and wrong."""

from typing import Any

import pytest

from loadtest.drive.random_adapters import LlamaShape
from loadtest.errors import LoadTestError
from loadtest.measurements import hot_swap
from loadtest.measurements.hot_swap import Plan, Promotion, gaps_within, num_misdirected
from loadtest.outcome.request_outcome import Outcome
from tests.loadtest.fake_server import FakeServer, measured
from tests.tiny import TINY_BASE

SHAPE = LlamaShape.from_config(TINY_BASE)
PROMOTIONS = [Promotion(1, 0.0, 1.0), Promotion(2, 5.0, 6.0), Promotion(3, 9.0, 10.0)]


SHORT = Plan(
    num_versions=3,
    rank=1,
    num_promotions=20,
    num_rounds=2,
    quiet_seconds=0.05,
    pause_seconds=0.005,
    bystander_tokens=4,
    metrics_seconds=0,
)


def answered(version: int, sent: float, answered: float) -> Outcome:
    named = f"default/bench-swap@{version}"
    return Outcome("t", "bench-swap", sent, sent, sent, 1, answered=answered, version=named)


async def measure(server: FakeServer) -> dict[str, Any]:
    async with measured(server.app()) as connected:
        _, result = await hot_swap.run(connected, SHAPE, lambda _: None, SHORT)
    return result


@pytest.mark.parametrize(
    ("asked_at", "answered_at", "right"),
    [
        (2.0, 3.0, {1}),  # between two promotions
        (4.0, 5.5, {1, 2}),  # one is on its way
        (5.5, 5.8, {1, 2}),
        (6.5, 7.0, {2}),  # acknowledged: the old one is out
        (2.0, 11.0, {1, 2, 3}),  # waited through all
        (11.0, 12.0, {3}),
    ],
)
def test_a_request_gets_who_was_live_on_its_way(
    asked_at: float, answered_at: float, right: set[int]
) -> None:
    for version in (1, 2, 3):
        answers = [answered(version, asked_at, answered_at)]
        assert num_misdirected(answers, PROMOTIONS) == (version not in right)


def test_gaps_belong_to_the_phase_in_which_they_end() -> None:
    answer = answered(1, 0.0, 0.5)
    answer.token_times = [1.0, 1.5, 2.5, 2.75]
    assert gaps_within([answer], [(0.0, 2.0)]) == [500.0]
    assert gaps_within([answer, answer], [(2.0, 3.0)]) == [1000.0, 250.0] * 2


async def test_all_is_well_on_a_server_that_is_right() -> None:
    counts = (await measure(FakeServer()))["counts"]
    assert counts["promotions"] == 20
    assert counts["requests"] > 20
    assert counts["tokens"] > 20 * hot_swap.SWAPPED_TOKENS
    assert counts["failed"] == counts["wrong tokens"] == 0
    assert counts["of another version than live"] == 0


async def test_a_refused_request_is_counted() -> None:
    server = FakeServer()
    server.refuse_under_load = 2
    result = await measure(server)
    assert result["counts"]["failed"] == len(result["failures"]) == 2
    assert "no slot" in result["failures"][0]


async def test_tokens_of_other_weights_are_wrong() -> None:
    server = FakeServer()
    server.streams_as = {"default/bench-swap@2": "default/bench-swap@1"}
    counts = (await measure(server))["counts"]
    assert 0 < counts["wrong tokens"] < counts["tokens"]
    assert counts["wrong tokens"] % hot_swap.SWAPPED_TOKENS == 0
    assert counts["of another version than live"] == 0, "only the tokens tell"


async def test_versions_that_answer_alike_are_no_measure() -> None:
    server = FakeServer()
    server.answers_as = {f"default/bench-swap@{n}": "base" for n in (1, 2, 3)}
    with pytest.raises(LoadTestError, match="too much alike"):
        await measure(server)
