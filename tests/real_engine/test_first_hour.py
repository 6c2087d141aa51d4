"""`examples/first_hour.sh`: a new user's path, from a clone to a promoted adapter of one's own.

`make test-long` runs it. Each of its steps has tests of its own; those of `make test` see that its
commands and options exist.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.long_form import LONG

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.mark.skipif(not LONG, reason="`make test-long` runs it")
def test_the_first_hour(tmp_path: Path) -> None:
    """With few steps of training; everything else is what a user runs."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("LORAPLEX_")}
    ours = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LORAPLEX_PORT": str(free_port()),
        "SHORT": "1",
    }
    done = subprocess.run(
        ["bash", "examples/first_hour.sh", str(tmp_path)],
        cwd=ROOT,
        env=inherited | ours,
        capture_output=True,
        text=True,
    )
    said = done.stdout
    assert done.returncode == 0, said + done.stderr
    answers = re.findall(r"^(default/lights@\d) (?!is ready)\S", said, re.MULTILINE)
    assert answers == [f"default/lights@{number}" for number in (1, 2, 1)]
    assert re.search(r"default\W+lights\W+2\W+-\W+2 ready", said), "the promoted version is live"
    assert "served:lights@2 minus served:lights@1" in said
    assert "alias.rollback" in said
    assert "Done: lights@2 is live" in said
    report = tmp_path / "load-test" / "report.html"
    assert report.stat().st_size > 0
    results = json.loads((tmp_path / "first" / "training_run.json").read_text())
    assert results["num_steps_run"] == 2
