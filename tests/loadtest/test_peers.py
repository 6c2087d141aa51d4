"""Two servers set side by side: the turns they take, the table, and that nothing stays behind."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from loadtest.errors import LoadTestError
from loadtest.outcome.request_outcome import Outcome
from loadtest.outcome.run_record import Run
from loadtest.plan.scenario import Scenario
from loadtest.plan.scenario_file import load_scenario
from loadtest.report import report
from loadtest.report.measures import summarise
from loadtest.report.recorded import Recorded, read_run
from server.bundled_base import ensure_bundled_base
from tests.benchmarks import peers
from tests.benchmarks.peer_servers import Contestant, Started
from tests.benchmarks.peer_table import Contest, Part, markdown
from tests.loadtest.conftest import SHORT
from tests.loadtest.stub_server import KEY

SECONDS = 20.0
STUB = [sys.executable, "-m", "tests.loadtest.stub_server", "--adapters", "2"]
SCENARIO = """
question = "Does it work?"
duration_seconds = 0.5
arrivals = { process = "closed", concurrency = 2 }
limits = { stall_seconds = 1, drain_seconds = 2 }
[adapters]
names = ["load-0", "load-1"]
[requests]
output = { kind = "fixed", tokens = 4 }
[truth]
share = 0.5
prompts = 1
"""


def record(directory: Path, speed: float, **changes: Any) -> Recorded:
    """A made-up run of requests one after the other, whose tokens are 10 ms / speed apart."""
    scenario = Scenario.model_validate({**SHORT, "duration_seconds": SECONDS})
    run = Run(scenario, "http://x", "now", seconds=SECONDS, complete=True)
    at = 0.0
    while at < SECONDS:
        outcome = Outcome("t", "load-0", at, at, at, 4)
        outcome.first = at + 0.1 / speed
        outcome.gaps, outcome.tokens_out = [0.01 / speed] * 3, 4
        at = outcome.done = outcome.first + 0.03 / speed
        run.outcomes.append(outcome)
    report.write(directory, run, {**summarise(run), **changes})
    return read_run(directory)


def row(table: str, name: str) -> list[str]:
    found = next(line for line in table.splitlines() if f"| {name} |" in line)
    return [cell.strip() for cell in found.split("|")[3:-1]]


def test_the_table_says_who_is_faster_and_what_went_wrong(tmp_path: Path) -> None:
    error = {"wrong_adapter": {"count": 2, "example": "load-0: asked load-0"}}
    truth = {"checked": 9, "right": 7, "wrong_adapter": 2}
    truth |= {"mixed_version": 0, "wrong_answer": 0, "stale_version": 0}
    ours = [Part(record(tmp_path / f"o{i}", 2.0)) for i in range(2)]
    theirs = [Part(record(tmp_path / "t", 1.0, errors=error, truth=truth)), Part(None, "hung")]
    table = markdown([Contest("four-adapters", ours, theirs)], "Loraplex", "vLLM")
    assert "| **four-adapters** | output tokens/s |" in table
    speeds = row(table, "output tokens/s")
    assert float(speeds[0]) == pytest.approx(2 * float(speeds[1]), rel=0.05)
    assert speeds[2].startswith("2.00 (")
    assert row(table, "first token P50, ms") == ["50.0", "100", "0.50 (0.50 to 0.50)"]
    assert row(table, "wrong answers")[1] == "2 of 9 checked"
    assert "* four-adapters, vLLM: round 2: hung" in table
    assert "2 × wrong_adapter (load-0: asked load-0)" in table


def test_rounds_that_differ_widen_the_interval(tmp_path: Path) -> None:
    def contest(speeds: tuple[float, float]) -> Contest:
        made = Contest(f"of {speeds}")
        for number, speed in enumerate(speeds):
            name = f"{speeds}-{number}"
            made.ours.append(Part(record(tmp_path / f"o{name}", speed)))
            made.peers.append(Part(record(tmp_path / f"t{name}", 1.0)))
        return made

    def interval(table: str) -> tuple[float, float]:
        low, _, high = row(table, "output tokens/s")[2].split("(")[1].rstrip(")").partition(" to ")
        return float(low), float(high)

    low, high = interval(markdown([contest((2.0, 2.0))], "a", "b", resamples=100))
    assert high - low < 0.1
    low, high = interval(markdown([contest((1.0, 3.0))], "a", "b", resamples=100))
    assert [low, high] == pytest.approx([1.0, 3.0], abs=0.1)


def test_what_a_peer_cant_do_is_in_the_table(tmp_path: Path) -> None:
    contest = Contest("hundred-adapters-churn", [Part(record(tmp_path / "o", 1.0))], [], "no churn")
    table = markdown([contest], "Loraplex", "llama.cpp")
    assert row(table, "output tokens/s")[1] == "can't: no churn"
    assert "1.00" not in table


def test_fixed_adapters_refuse_churn_and_more_of_them() -> None:
    fixed = Contestant("fixed", lambda port: [], "/", num_adapters=4)
    scenarios = {name: load_scenario(name) for name in peers.SCENARIOS}
    refused = [name for name, scenario in scenarios.items() if fixed.refusal(scenario)]
    assert refused == ["sixteen-adapters", "hundred-adapters-churn"]
    assert "fixed when it starts" in str(fixed.refusal(scenarios["hundred-adapters-churn"]))


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.write_text(KEY)
    return file


def stub(name: str, key_file: Path, *flags: str) -> Contestant:
    def command(port: int) -> list[str]:
        return [*STUB, "--port", str(port), *flags]

    return Contestant(name, command, "/metrics", key_file=key_file)


def test_both_are_driven_in_turn_and_the_table_is_of_both(
    tmp_path: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {child.pid for child in psutil.Process().children(recursive=True)}
    order: list[str] = []
    drive = peers.drive

    def watched(server: Any, *arguments: Any) -> Part:
        order.append(server.contestant.name)
        return drive(server, *arguments)

    monkeypatch.setattr(peers, "drive", watched)
    scenario = tmp_path / "short.toml"
    scenario.write_text(SCENARIO)
    both = stub("Ours", key_file), stub("Peer", key_file, "--fault", "foreign")
    text = peers.play_all(
        both, [str(scenario)], 2, 0.5, 60.0, ensure_bundled_base(), tmp_path, Console(quiet=True)
    )
    assert order == ["Ours", "Peer", "Peer", "Ours"]
    assert float(row(text, "output tokens/s")[0]) > 0, text
    assert row(text, "output tokens/s")[1:] == ["0.0", ""]
    assert row(text, "failed")[0].startswith("0 of ")
    assert row(text, "wrong answers")[0].startswith("0 of ")
    assert int(row(text, "wrong answers")[1].split()[0]) > 0
    assert "wrong_adapter (load-" in text
    left = {child.pid for child in psutil.Process().children(recursive=True)} - others
    assert all(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE for pid in left)


def test_a_part_that_hangs_is_cut_off(tmp_path: Path) -> None:
    scenario = tmp_path / "short.toml"
    scenario.write_text(SCENARIO)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        hanging = Started(Contestant("Deaf", lambda port: [], "/"), subprocess.Popen(["true"]), url)
        part = peers.drive(
            hanging, str(scenario), ensure_bundled_base(), 0.5, 4.0, tmp_path / "out"
        )
    assert part == Part(None, "cut off: not done within 4 s")
    hanging.process.wait()


def test_a_server_that_ends_early_is_said(tmp_path: Path, key_file: Path) -> None:
    dead = Contestant("Dead", lambda port: [sys.executable, "-c", "exit(3)"], "/")
    with pytest.raises(LoadTestError, match="ended with code 3"):
        peers.play_all(
            (dead, dead), [], 1, None, 1.0, ensure_bundled_base(), tmp_path, Console(quiet=True)
        )
