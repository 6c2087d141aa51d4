"""The search for the highest load ends, and finds it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.command.search import Trial, highest_passed, next_load


def search(limit: float, start: float, *, whole: bool = False) -> tuple[float | None, int]:
    """The answer for a server that keeps up to `limit`, and how many trials it took."""
    trials: list[Trial] = []
    while (load := next_load(trials, start, 0.1, whole=whole)) is not None:
        assert load not in [trial.load for trial in trials]
        trials.append(Trial(load, load <= limit))
        assert len(trials) < 60
    return highest_passed(trials), len(trials)


@given(st.floats(0.01, 1e4), st.floats(0.1, 100))
def test_it_ends_close_below_the_limit(limit: float, start: float) -> None:
    found, _ = search(limit, start)
    if found is None:
        assert limit < start / 400
    else:
        assert found <= limit <= found * 1.1


@given(st.integers(1, 500), st.integers(1, 64))
def test_numbers_of_clients_are_whole(limit: int, start: int) -> None:
    found, _ = search(limit, start, whole=True)
    assert found is not None
    assert found == int(found) <= limit <= max(found + 1, found * 1.1)


def test_no_load_at_all() -> None:
    assert search(0, 8, whole=True)[0] is None


@pytest.mark.parametrize(("limit", "num_trials"), [(10, 7), (1000, 13)])
def test_it_takes_few_runs(limit: float, num_trials: int) -> None:
    assert search(limit, 4)[1] <= num_trials


def test_a_load_that_passes_above_one_that_failed_isnt_believed() -> None:
    trials = [Trial(1, True), Trial(2, False), Trial(4, True)]
    assert highest_passed(trials) == 1
