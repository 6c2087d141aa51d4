"""A server started for a measurement: whatever ends the measurement ends the server."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from loadtest.command.run import measure
from loadtest.drive.run import Target
from loadtest.errors import LoadTestError
from loadtest.plan.scenario import Scenario
from loadtest.started_server import free_port, running, sigterm_interrupts
from tests.loadtest.stub_server import KEY

STUB = f"{sys.executable} -m tests.loadtest.stub_server --port"
MEASUREMENT = """
import sys, time
from loadtest.started_server import running
with running(sys.argv[2:], sys.argv[1]) as process:
    print(process.pid, flush=True)
    time.sleep(300)
"""


def with_child(port: int) -> list[str]:
    """The stub, with a child in its process group that it doesn't stop."""
    return ["sh", "-c", f"sleep 300 & exec {STUB} {port}"]


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_sigterm_stops_the_server_and_its_children() -> None:
    port = free_port()
    command = [sys.executable, "-c", MEASUREMENT, f"http://127.0.0.1:{port}/metrics"]
    measurement = subprocess.Popen(
        [*command, *with_child(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert measurement.stdout is not None
    with measurement.stdout as lines:
        server = psutil.Process(int(lines.readline()))
    family = [server, *server.children()]
    assert len(family) == 2
    measurement.send_signal(signal.SIGTERM)
    assert measurement.wait(60) != 0
    assert all(is_gone(process) for process in family)


def test_sigterm_after_the_load_still_interrupts(tmp_path: Path) -> None:
    """The load takes the signal for itself, and gives it back."""
    port = free_port()
    scenario = Scenario.model_validate(
        {
            "question": "?",
            "duration_seconds": 0.2,
            "arrivals": {"process": "poisson", "rate": 20},
            "requests": {"output": {"kind": "fixed", "tokens": 2}},
        }
    )
    url = f"http://127.0.0.1:{port}"
    with (tmp_path / "log").open("wb") as log, sigterm_interrupts():
        with (
            contextlib.suppress(KeyboardInterrupt),
            running([*STUB.split(), str(port)], f"{url}/metrics", log=log) as process,
        ):
            measure(scenario, Target(url, KEY), Console(quiet=True))
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("the signal was lost")
        assert process.poll() is not None


def test_a_server_that_ends_is_an_error() -> None:
    with (
        pytest.raises(LoadTestError, match="ended with code 3"),
        running([sys.executable, "-c", "exit(3)"], "http://127.0.0.1:1/"),
    ):
        pass
