"""`loraplex loadtest run` as a user calls it: exit codes, files, Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli.loadtest import app
from tests.loadtest.stub_server import KEY, Stub

SCENARIO = """
question = "Does it work?"
duration_seconds = 0.5
arrivals = { process = "poisson", rate = 40 }
slo = "error_rate<0.1%"
[adapters]
names = ["a", "b"]
[requests]
output = { kind = "fixed", tokens = 4 }
[truth]
share = 0.3
prompts = 1
"""


@pytest.fixture
def stub() -> Iterator[tuple[Stub, str]]:
    """The stub in a thread of its own: the command runs its own loop."""
    made, loop, ready = Stub(["a", "b"]), asyncio.new_event_loop(), threading.Event()
    ports: list[int] = []

    async def serve() -> None:
        listening = await made.start()
        ports.append(listening.sockets[0].getsockname()[1])
        ready.set()

    def work() -> None:
        loop.run_until_complete(serve())
        loop.run_forever()

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait(10)
    yield made, f"http://127.0.0.1:{ports[0]}"
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def scenario_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAPLEX_API_KEY", KEY)
    file = tmp_path / "scenario.toml"
    file.write_text(SCENARIO)
    return file


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["run", *map(str, arguments)])
    return result.exit_code, result.output


def test_a_run_leaves_its_report(stub: tuple[Stub, str], scenario_file: Path) -> None:
    out = scenario_file.parent / "out"
    code, output = run(scenario_file, "--url", stub[1], "--out", out, "--load", "80")
    assert code == 0, output
    assert "objective error_rate<0.1%: met" in output
    summary = json.loads((out / "summary.json").read_text())
    assert summary["scenario"]["arrivals"]["rate"] == 80
    assert {file.name for file in out.iterdir()} == {"summary.json", "requests.csv", "report.html"}


def test_a_missed_objective_is_exit_code_1(stub: tuple[Stub, str], scenario_file: Path) -> None:
    out = scenario_file.parent / "out"
    code, output = run(scenario_file, "--url", stub[1], "--out", out, "--slo", "ttft_p99<1us")
    assert code == 1
    assert "MISSED" in output


def test_a_liar_is_exit_code_1(stub: tuple[Stub, str], scenario_file: Path) -> None:
    stub[0].fault = "foreign"
    out = scenario_file.parent / "out"
    scenario_file.write_text(SCENARIO.replace("share = 0.3", "share = 0.0"))
    code, output = run(scenario_file, "--url", stub[1], "--out", out, "--slo", "")
    assert code == 1
    assert "error wrong_adapter" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no scenario nowhere"),
        (["bursts", "--url", "http://127.0.0.1:1"], "no answer from"),
        (["bursts", "--slo", "speed>1"], "objective 'speed'"),
        (["bursts", "--server", "triton"], "--server must be one of openai, llama-cpp"),
    ],
)
def test_what_cant_be_measured_is_exit_code_2(arguments: list[str], message: str) -> None:
    code, output = run(*arguments)
    assert code == 2
    assert message in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_a_partial_report(
    stub: tuple[Stub, str], scenario_file: Path, number: signal.Signals
) -> None:
    out = scenario_file.parent / "out"
    scenario_file.write_text(SCENARIO.replace("share = 0.3", "share = 0.0"))
    command = [sys.executable, "-m", "server", "loadtest", "run", str(scenario_file)]
    command += ["--url", stub[1], "--out", str(out), "--duration", "60"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while stub[0].num_requests < 20 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "cut off" in output
    assert json.loads((out / "summary.json").read_text())["requests"]["ok"] > 0


def test_a_sweep_finds_the_highest_load(stub: tuple[Stub, str], scenario_file: Path) -> None:
    out = scenario_file.parent / "out"
    arguments = ["sweep", scenario_file, "--url", stub[1], "--out", out, "--precision", "0.9"]
    slo = ["--slo", "requests_per_second<120", "--duration", "1"]
    result = CliRunner().invoke(app, [str(argument) for argument in [*arguments, *slo]])
    assert result.exit_code == 0, result.output
    found = json.loads((out / "sweep.json").read_text())
    assert 40 <= found["highest_load"] < 160
    assert [step["passed"] for step in found["steps"]] == sorted(
        (step["passed"] for step in found["steps"]), reverse=True
    )
    assert (out / "report.html").read_text().count("<svg") == 2


def test_two_runs_are_compared(stub: tuple[Stub, str], scenario_file: Path) -> None:
    folders = [scenario_file.parent / name for name in ("a", "b")]
    for folder in folders:
        assert run(scenario_file, "--url", stub[1], "--out", folder)[0] == 0
    result = CliRunner().invoke(app, ["compare", *map(str, folders), "--json"])
    rows = json.loads(result.output)
    assert {"requests/s", "first token P99, ms"} <= {row["name"] for row in rows}
    assert CliRunner().invoke(app, ["compare", "nowhere", "nowhere"]).exit_code == 2


def test_a_run_is_simulated_with_other_settings(
    stub: tuple[Stub, str], scenario_file: Path
) -> None:
    out = scenario_file.parent / "out"
    arguments = "--duration", "2", "--url", stub[1], "--out", out
    assert run(scenario_file, *arguments)[0] == 0
    result = CliRunner().invoke(app, ["capacity", str(out), "--ran-with", "4,16", "--slots", "1,2"])
    assert result.exit_code == 0, result.output
    assert "measured" in result.output
    assert CliRunner().invoke(app, ["capacity", str(out), "--ran-with", "4"]).exit_code == 2
