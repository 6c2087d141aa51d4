"""A server of ours as a process of its own, but for the engine: real sockets, signals, registry.

python -m tests.deploy.replica PORT DATABASE_URL CONTENT_FOLDER [ORIGIN]
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import httpx
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from sqlalchemy.orm import Session

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.adapter_files import digest_of
from adapters_registry.content.origin import Origin
from adapters_registry.content.store import ContentStore
from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.database import database_time
from adapters_registry.registry import Registry
from server.app import build_server
from server.engine.interface import Endpoint
from server.errors import APIError, Unavailable
from server.process.data_dir import take_server_id
from server.process.listening import HTTP_SETTING, listen
from server.process.running import RunningServer
from server.process.upkeep import BOOKKEEPING_INTERVAL_SECONDS
from server.residency.leases import Leases
from server.rollout.rollouts import Rollouts
from server.settings import Settings
from tests.server.fake_engine import Body, FakeEngine, parse
from tests.tiny import TINY_BASE

NUM_TOKENS, TOKEN_SECONDS = 8, 0.02
START_SECONDS = 600
"""The end of everything. Where much else runs, the imports alone have taken three minutes."""
NOTICE_SECONDS = 4
TAKE_UP_SECONDS = 2.0
LOAD_SECONDS_VARIABLE = "REPLICA_LOAD_SECONDS"
"""How long the engine takes to read an adapter."""
FAILING_VARIABLE = "REPLICA_FAILING"
"""The version whose requests fail, as `tenant/name@3`."""
SPEED_VARIABLE = "REPLICA_SPEED"
"""How many times as fast the judge's clock goes, and how often the books are written."""
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class Replica:
    """One such process; it may end and start again at the same address."""

    def __init__(
        self,
        port: int,
        database_url: str,
        content: Path,
        origin: str = "",
        environment: Mapping[str, str] | None = None,
        *,
        host: str = "127.0.0.1",
        prefix: Sequence[str] = (),
        folder: Path | None = None,
    ) -> None:
        """`prefix`: a command that runs the server's; `folder`: where its program is from."""
        self.environment = {**os.environ, "LORAPLEX_HOST": host, **(environment or {})}
        self.port, self.url = port, f"http://{host}:{port}"
        self.folder = folder
        self.arguments = port, database_url, content, origin
        """What `serve` takes."""
        self._prefix = prefix
        self.start()

    def start(self) -> None:
        """Start the process; returns before it answers."""
        command = [*self._prefix, sys.executable, "-m", "tests.deploy.replica"]
        command += map(str, self.arguments)
        self.process = subprocess.Popen(command, env=self.environment, cwd=self.folder)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            assert not self.has_ended, "the server ended"
            assert time.monotonic() < deadline, "the server isn't ready"
            time.sleep(0.1)

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", verify=False).status_code == 200
        except httpx.TransportError:
            return False

    def terminate(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(START_SECONDS)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class StreamingEngine(FakeEngine):
    """Answers completions token by token. Each token is the digest of the files that it loaded.

    Like a real one it keeps what it has loaded by the version's id, until it is condemned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.digests: dict[int, str] = {}
        self.load_seconds = float(os.environ.get(LOAD_SECONDS_VARIABLE, "0"))
        self.failing = os.environ.get(FAILING_VARIABLE)
        self.max_running = 100
        self.prefill_tokens = 100
        self.endpoints = {"/v1/completions": Endpoint(Body, parse, self._complete)}

    async def run(self, on_ready: Callable[[], None]) -> None:
        on_ready()
        await asyncio.Event().wait()

    async def stop(self) -> None:
        """Nothing to stop."""

    async def prepare(self, version: VersionRecord, path: Path) -> None:
        generation = self.generation
        await super().prepare(version, path)
        digest, _ = await asyncio.to_thread(digest_of, path)
        if generation != self.generation:
            raise Unavailable("the engine was restarted meanwhile")
        self.digests.setdefault(version.version_id, digest)

    async def evict(self, version: VersionRecord) -> None:
        await super().evict(version)
        self.digests.pop(version.version_id, None)

    def condemn(self, _why: str) -> None:
        """Start again with nothing, at once."""
        self.slots, self.host, self.digests = set(), set(), {}
        self.generation += 1

    async def _complete(self, body: Body, _raw: Request, version: VersionRecord | None) -> Response:
        name = version.public_name if version else "base"
        if name == self.failing:
            raise APIError("planted")
        text = self.digests[version.version_id] if version else "base"

        async def tokens() -> AsyncIterator[str]:
            for _ in range(NUM_TOKENS):
                await asyncio.sleep(TOKEN_SECONDS)
                choice = {"index": 0, "text": text, "finish_reason": None}
                yield f"data: {json.dumps({'model': name, 'choices': [choice]})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(tokens(), media_type="text/event-stream")


def fast_time(session: Session, speed: float) -> datetime:
    """The database's clock, which all replicas share, but faster."""
    return _EPOCH + speed * (database_time(session) - _EPOCH)


def serve(port: int, database_url: str, content: Path, origin: str = "") -> int:
    """Until a signal ends it; the exit code."""
    data_dir = content.parent / f"replica-{port}"
    data_dir.mkdir(parents=True, exist_ok=True)
    settings = Settings(port=port, notice_seconds=NOTICE_SECONDS, data_dir=data_dir)
    base = BaseSpec.from_config("tiny", TINY_BASE, max_rank=8)
    store = ContentStore(content, origin=Origin(origin) if origin else None)
    own, before = take_server_id(settings)
    registry = Registry(database_url, store, base, server_id=own, former_id=before)
    engine = StreamingEngine()
    registry.on_restored = partial(engine.condemn, "the database was restored")
    leases = Leases.of(settings, engine, registry)
    speed = float(os.environ.get(SPEED_VARIABLE, "1"))
    rollouts = Rollouts(registry, leases, partial(fast_time, speed=speed))
    server = build_server(settings, registry, engine, leases=leases, rollouts=rollouts)

    async def prepare(engine_is_up: asyncio.Event) -> None:
        await engine_is_up.wait()
        await server.services.gate.take_up(TAKE_UP_SECONDS)

    running = RunningServer(server, engine, prepare, BOOKKEEPING_INTERVAL_SECONDS / speed)
    with listen(settings.host, port, HTTP_SETTING) as listener:
        return asyncio.run(running.run(listener))


if __name__ == "__main__":
    port, database_url, content, *origin = sys.argv[1:]
    sys.exit(serve(int(port), database_url, Path(content), *origin))
