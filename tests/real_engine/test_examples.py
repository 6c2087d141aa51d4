"""The examples that chat, run as their README says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.real_engine.running_server import RunningServer

ROOT = Path(__file__).parents[2]


def run(server: RunningServer, *command: str) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": path,
            "LORAPLEX_URL": server.url,
            "LORAPLEX_API_KEY": server.key,
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("sdk", ["openai", "anthropic"])
def test_chat(server: RunningServer, sdk: str) -> None:
    said = run(server, sys.executable, f"examples/chat_{sdk}.py", "smart-home")
    assert '"HassTurnOn"' in said
    assert "(answered by default/smart-home@1)" in said
