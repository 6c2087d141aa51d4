"""The load-test scenarios of adapters that come and go, and the servers they want."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from loadtest.started_server import StartedServer, started_server
from server.settings import load_settings

if TYPE_CHECKING:
    from loadtest.drive.random_adapters import LlamaShape
    from loadtest.measurements.client import Client

Report = tuple[Table, dict[str, Any]]
Scenario = Callable[["Client", "LlamaShape", Callable[[str], None]], Awaitable[Report]]

HOT_SWAP, COLD_START, MANY_ADAPTERS = "hot-swap", "cold-start", "many-adapters"
SCENARIOS = (HOT_SWAP, COLD_START, MANY_ADAPTERS)
HOT_SWAP_SLOTS = 8


def run_scenario(
    scenario: str, console: Console, config: Path | None, num_adapters: int, num_swaps: int
) -> Report:
    """Run one against LORAPLEX_URL, or else a server started for it; what it found.

    Raises:
        LoadTestError: the server can't be measured.
    """
    from loadtest.measurements import cold_start, hot_swap

    if scenario == HOT_SWAP:
        return _on_a_server(console, config, hot_swap.run, "--max-loras", str(HOT_SWAP_SLOTS))
    if scenario == COLD_START:
        flags = ("--max-loras", str(cold_start.SLOTS), "--max-cpu-loras")
        return _on_a_server(console, config, cold_start.run, *flags, str(cold_start.HOST_BUDGET))
    return _many_adapters(console, config, num_adapters, num_swaps)


def _many_adapters(
    console: Console, config: Path | None, num_adapters: int, num_swaps: int
) -> Report:
    from loadtest.errors import LoadTestError
    from loadtest.measurements import many_adapters

    slot_wait_seconds = load_settings().slot_wait_seconds
    server: list[StartedServer] = []

    async def measure(client: Client, shape: LlamaShape, progress: Callable[[str], None]) -> Report:
        if not num_swaps:
            return await many_adapters.run(
                client,
                shape,
                progress,
                num_adapters=num_adapters,
                slot_wait_seconds=slot_wait_seconds,
            )
        if not server:
            raise LoadTestError("--swaps wants a server of its own, to see its memory")
        return await many_adapters.run_swaps(
            client,
            shape,
            progress,
            num_adapters=num_adapters,
            num_swaps=num_swaps,
            memory_bytes=server[0].own_bytes,
        )

    host = many_adapters.SWAPS_HOST_BUDGET if num_swaps else many_adapters.HOST_BUDGET
    flags = ("--max-loras", str(many_adapters.SLOTS), "--max-cpu-loras", str(host))
    return _on_a_server(console, config, measure, *flags, started=server.append)


def _on_a_server(
    console: Console,
    config: Path | None,
    scenario: Scenario,
    *flags: str,
    started: Callable[[StartedServer], None] = lambda _: None,
) -> Report:
    from loadtest.drive.random_adapters import LlamaShape
    from loadtest.measurements.client import Client

    shape = LlamaShape.from_config(json.loads(config.read_text())) if config else LlamaShape()

    async def measure(url: str, key: str) -> Report:
        with console.status("") as status:
            async with Client(url, key) as client:
                return await scenario(client, shape, status.update)

    settings = load_settings()
    if "url" in settings.model_fields_set:
        key = settings.api_key or settings.admin_key_path.read_text().strip()
        return asyncio.run(measure(settings.url, key))
    with started_server(console, *flags) as server:
        started(server)
        return asyncio.run(measure(server.url, server.key))
