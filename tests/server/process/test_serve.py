"""A server from its first line to its last, with a stand-in for the engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from tests.tiny import TINY_BASE

PROGRAM = """
import asyncio, sys
from server.engine import supervisor
from tests.server.fake_engine import FakeEngine

class StandIn(FakeEngine):
    def __init__(self, *_arguments, on_phase, **_more):
        super().__init__()
        self._on_phase = on_phase

    async def run(self, on_ready):
        self._on_phase("engine")
        on_ready()
        await asyncio.Event().wait()

    async def stop(self):
        pass

    def condemn(self, why):
        pass

supervisor.EngineSupervisor = StandIn
from server.process.serve import serve
from server.settings import Settings

settings = Settings(base=sys.argv[1], data_dir=sys.argv[2], port=0, notice_seconds=0)
sys.exit(serve(settings, lambda line: print(line, flush=True)))
"""


def test_a_start_ends_with_where_its_seconds_went_and_a_signal_with_code_0(tmp_path: Path) -> None:
    base, temporary = tmp_path / "base", tmp_path / "temporary"
    base.mkdir()
    temporary.mkdir()
    (base / "config.json").write_text(json.dumps(TINY_BASE))
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(base), str(tmp_path / "var")],
        # With several processes in the engine, no fork server imports for it.
        env={
            **os.environ,
            "PYTHONPATH": str(Path.cwd()),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
            "TMPDIR": str(temporary),
        },
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        ready = next(line for line in server.stdout if line.startswith("ready at "))
        phases = ("prepare", "imports", "registry", "app", "engine")
        assert all(f"{phase} " in ready for phase in phases), ready
        url = ready.split()[2]
        for path in ("/livez", "/readyz"):
            assert httpx.get(url + path, timeout=20).status_code == 200
        assert list(temporary.glob("loraplex-*")), "sockets have no folder of their own"
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    assert not list(temporary.glob("loraplex-*"))
