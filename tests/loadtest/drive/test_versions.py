"""Versions on a server like vLLM's own: names that are unloaded and loaded again."""

from __future__ import annotations

import pytest

from loadtest.outcome.request_outcome import WRONG
from loadtest.outcome.run_record import Run
from loadtest.report.measures import summarise
from tests.loadtest.conftest import StubServer

CHURN = {
    "registrations_per_minute": 400,
    "promotions_per_minute": 400,
    "rollbacks_per_minute": 100,
    "retirements_per_minute": 100,
}

MAX_RUNS = 10
"""On a busy machine the changes of a run may come after its last request, which then finds nothing
wrong."""


async def changed(server: StubServer, **churn: bool) -> Run:
    server.stub.ours = False
    return await server.run(
        duration_seconds=1.5, truth={"share": 0.5, "prompts": 2}, churn={**CHURN, **churn}
    )


@pytest.mark.parametrize("in_place", [False, True])
async def test_names_are_loaded_again_and_every_answer_is_checked(
    server: StubServer, in_place: bool
) -> None:
    for _ in range(2):  # the second run finds what the first has left
        result = await changed(server, in_place=in_place)
        assert {record.kind for record in result.churn} >= {"registration", "promotion", "rollback"}
        assert not [record.error for record in result.churn if record.error]
        found = {outcome.status for outcome in result.outcomes}
        assert found <= {"ok", "http_404"}, "between unloading and loading there is no such model"
        assert result.truth.num_right > 0
        assert result.truth.num_unchecked == 0


def num_wrong(result: Run) -> int:
    truth = summarise(result)["truth"]
    return sum(truth[kind] for kind in WRONG)


async def test_weights_that_outlive_their_name_are_caught(server: StubServer) -> None:
    """What a prefix cache does whose keys are name and path."""
    server.stub.fault = "stale"
    assert num_wrong(await changed(server)) == 0
    for _ in range(MAX_RUNS):
        if num_wrong(await changed(server, in_place=True)):
            return
    pytest.fail("no wrong answer was found")
