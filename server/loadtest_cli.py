"""`loraplex loadtest`: starts a server where none is given, and runs a scenario against it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import httpx
import typer
from rich.console import Console

from server.settings import Settings, load_settings

if TYPE_CHECKING:
    from loadtest.adapters import LlamaShape

app = typer.Typer(help="Measure a server under load.", no_args_is_help=True)

SCENARIOS = ("lora-overhead",)
START_SECONDS = 300
STOP_SECONDS = 60


@app.callback()
def _commands() -> None:
    """Keep `run` a command of its own."""


@app.command()
def run(
    scenario: Annotated[str, typer.Argument(help=f"One of: {', '.join(SCENARIOS)}.")],
    config: Annotated[
        Path | None, typer.Option(help="The base's config.json; default: the bundled base's.")
    ] = None,
) -> None:
    """Run a scenario against LORAPLEX_URL, or else a server started for it.

    Prints a table, and the same as JSON on the last line.
    """
    from loadtest.client import Client, LoadTestError
    from loadtest.scenarios import lora_overhead

    if scenario not in SCENARIOS:
        raise typer.BadParameter(f"there is no {scenario}: one of {', '.join(SCENARIOS)}")
    settings = load_settings()
    console = Console(stderr=True)

    async def measure(url: str, key: str) -> None:
        with console.status("") as status:
            async with Client(url, key) as client:
                table, result = await lora_overhead.run(client, _shape(config), status.update)
        Console().print(table)
        print(json.dumps(result))

    try:
        with _server(settings, console) as (url, key):
            asyncio.run(measure(url, key))
    except LoadTestError as error:
        console.print(f"loraplex: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None


def _shape(config: Path | None) -> LlamaShape:
    from loadtest.adapters import LlamaShape

    return LlamaShape.from_config(json.loads(config.read_text())) if config else LlamaShape()


@contextlib.contextmanager
def _server(settings: Settings, console: Console) -> Iterator[tuple[str, str]]:
    """URL and key: of the server that LORAPLEX_URL names, or of a new one with sixteen slots."""
    if "url" in settings.model_fields_set:
        yield settings.url, settings.api_key or settings.admin_key_file.read_text().strip()
        return
    with tempfile.TemporaryDirectory(prefix="loraplex-") as data_dir:
        port = _free_port()
        command = [sys.executable, "-m", "server", "serve", "--data-dir", data_dir]
        command += ["--port", str(port), "--max-loras", "16"]
        process = subprocess.Popen(command, stdout=sys.stderr)
        try:
            url = f"http://127.0.0.1:{port}"
            with console.status("starting a server"):
                _wait_until_ready(process, url)
            yield url, (Path(data_dir) / "admin.key").read_text().strip()
        finally:
            process.terminate()
            process.wait(STOP_SECONDS)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    from loadtest.client import LoadTestError

    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise LoadTestError(f"the server ended with code {process.returncode}")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/readyz", timeout=30).status_code == 200:
                return
        time.sleep(0.5)
    raise LoadTestError(f"the server wasn't ready within {START_SECONDS} s")
