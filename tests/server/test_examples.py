"""The examples that need no model, run against the app on a fake engine over real HTTP."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
import uvicorn
from fastapi import FastAPI

from adapters_registry.registry import Registry
from server.auth import Keys
from tests.tiny import AdapterFactory

ROOT = Path(__file__).parents[2]


@pytest_asyncio.fixture
async def environment(app: FastAPI, keys: Keys) -> AsyncIterator[dict[str, str]]:
    """Serve the app on a free port; yields the environment that the examples read."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LORAPLEX_URL": f"http://127.0.0.1:{port}",
        "LORAPLEX_API_KEY": keys.create("default", ["admin"]),
    }
    server.should_exit = True
    await serving


async def run(environment: dict[str, str], *command: str | Path) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode()


async def test_register(environment: dict[str, str], make_adapter: AdapterFactory) -> None:
    command = sys.executable, "examples/register.py", "lights"
    code, said = await run(environment, *command, make_adapter())
    assert (code, said.startswith("default/lights@1 is ready, ")) == (0, True), said
    code, said = await run(environment, *command, make_adapter(config={"use_dora": True}))
    assert (code, "refused: " in said) == (1, True), said


async def test_canary(
    environment: dict[str, str], make_adapter: AdapterFactory, registry: Registry
) -> None:
    versions = make_adapter(seed=1), make_adapter(seed=2)
    code, said = await run(environment, "examples/canary.sh", "rooms", *versions)
    assert code == 0, said
    live = registry.get_adapter("default", "rooms").aliases["live"]
    assert [(target.version, target.weight) for target in live.targets] == [(2, 100)]
