"""Two runs side by side: what differs is found, what doesn't isn't."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loadtest.errors import LoadTestError
from loadtest.outcome.request_outcome import Outcome
from loadtest.outcome.run_record import Run
from loadtest.plan.scenario import Scenario
from loadtest.report import report
from loadtest.report.comparison import Row, compare
from loadtest.report.measures import summarise
from loadtest.report.recorded import Recorded, read_run
from tests.loadtest.conftest import SHORT

SECONDS = 30.0
RESAMPLES = 200


def record(directory: Path, seed: int, slower: float = 1.0, rate: int = 40) -> Recorded:
    """A made-up run: log-normal first tokens, and a wave over time that all requests share."""
    rng = np.random.default_rng(seed)
    scenario = Scenario.model_validate({**SHORT, "duration_seconds": SECONDS})
    run = Run(scenario, "http://x", "now", seconds=SECONDS, complete=True)
    for due in np.arange(0, SECONDS - 1, 1 / rate).tolist():
        outcome = Outcome("t", "a", due, due, due, 4)
        wave = 1 + 0.3 * np.sin(due + seed)
        outcome.first = due + 0.1 * slower * wave * rng.lognormal(0, 0.3)
        outcome.gaps, outcome.tokens_out = [0.01] * 3, 4
        outcome.done = outcome.first + 0.03
        run.outcomes.append(outcome)
    report.write(directory, run, summarise(run))
    return read_run(directory)


def row(rows: list[Row], name: str) -> Row:
    return next(row for row in rows if row.name == name)


def test_a_slower_run_is_told_from_a_faster(tmp_path: Path) -> None:
    rounds = [(record(tmp_path / "a", 1), record(tmp_path / "b", 2, slower=1.3))]
    rows = compare(rounds, resamples=RESAMPLES)
    median = row(rows, "first token P50, ms")
    assert median.low < 1.3 < median.high
    assert median.differs
    assert median.ratio == pytest.approx(median.second / median.first)
    assert not row(rows, "time per output token P50, ms").differs


def test_equal_runs_are_within_their_intervals(tmp_path: Path) -> None:
    rounds = [(record(tmp_path / "a", 1), record(tmp_path / "b", 2))]
    rows = compare(rounds, resamples=RESAMPLES)
    assert not row(rows, "first token P50, ms").differs
    assert not row(rows, "requests/s").differs


def test_throughput_is_compared(tmp_path: Path) -> None:
    rounds = [(record(tmp_path / "a", 1), record(tmp_path / "b", 2, rate=20))]
    rows = compare(rounds, resamples=RESAMPLES)
    assert row(rows, "requests/s").ratio == pytest.approx(0.5, rel=0.03)
    assert row(rows, "output tokens/s").differs


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadTestError, match="has no run"):
        read_run(tmp_path)
