"""Runs the Python measurements of `loraplex loadtest run`, with the servers that they need."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from loadtest.started_server import StartedServer, started_server
from server.settings import load_settings

if TYPE_CHECKING:
    from loadtest.drive.random_adapters import LlamaShape
    from loadtest.measurements.measured_server import MeasuredServer

Report = tuple[Table, dict[str, Any]]
Measure = Callable[["MeasuredServer", "LlamaShape", Callable[[str], None]], Awaitable[Report]]

LORA_OVERHEAD, FOUR_BIT = "lora-overhead", "four-bit"
HOT_SWAP, COLD_START, MANY_ADAPTERS = "hot-swap", "cold-start", "many-adapters"
MEASUREMENTS = (LORA_OVERHEAD, FOUR_BIT, HOT_SWAP, COLD_START, MANY_ADAPTERS)
_MIB = 1 << 20


@dataclass(frozen=True)
class Options:
    """The options of a measurement from the command line."""

    config: Path | None
    """The base's `config.json`, whose shape the random adapters get."""
    checkpoint: Path | None
    num_adapters: int
    num_swaps: int
    num_slots: int | None = None
    """Of a server that is started for many-adapters. None takes its own default."""


def run_measurement(name: str, console: Console, options: Options) -> Report:
    """Measure LORAPLEX_URL, or a server started for it. Returns the table and the same as JSON.

    Raises:
        LoadTestError: the server can't be measured.
    """
    from loadtest.errors import LoadTestError
    from loadtest.measurements import cold_start, hot_swap, lora_overhead

    if name == FOUR_BIT:
        if options.checkpoint is None or not options.checkpoint.is_dir():
            raise LoadTestError("four-bit needs --checkpoint DIRECTORY")
        return _four_bit(options.checkpoint, console)
    if name == MANY_ADAPTERS:
        return _many_adapters(console, options)
    measure: Measure
    measure, slots, host = {
        LORA_OVERHEAD: (lora_overhead.run, lora_overhead.NUM_ADAPTERS, None),
        HOT_SWAP: (hot_swap.run, hot_swap.SLOTS, None),
        COLD_START: (cold_start.run, cold_start.SLOTS, cold_start.HOST_BUDGET),
    }[name]
    return _on_a_server(console, options.config, measure, slots, host)


def _many_adapters(console: Console, options: Options) -> Report:
    from loadtest.errors import LoadTestError
    from loadtest.measurements import many_adapters, slot_swaps

    slot_wait_seconds = load_settings().slot_wait_seconds
    started: list[StartedServer] = []

    async def measure(
        server: MeasuredServer, shape: LlamaShape, progress: Callable[[str], None]
    ) -> Report:
        if not options.num_swaps:
            return await many_adapters.run(
                server,
                shape,
                progress,
                num_adapters=options.num_adapters,
                slot_wait_seconds=slot_wait_seconds,
            )
        if not started:
            raise LoadTestError("--swaps needs a server of its own, to see its memory")
        return await slot_swaps.run(
            server,
            shape,
            progress,
            num_adapters=options.num_adapters,
            num_swaps=options.num_swaps,
            memory_bytes=started[0].own_bytes,
        )

    host, slots = (slot_swaps.HOST_BUDGET, slot_swaps.SLOTS) if options.num_swaps else (None, None)
    slots = options.num_slots or slots
    return _on_a_server(console, options.config, measure, slots, host, started=started.append)


def _on_a_server(
    console: Console,
    config: Path | None,
    measure: Measure,
    slots: int | None,
    host: int | None,
    *,
    started: Callable[[StartedServer], None] = lambda _: None,
) -> Report:
    """Measure LORAPLEX_URL, or a new server with `slots` slots and `host` versions in memory.

    None takes the server's own default.
    """
    from loadtest.drive.random_adapters import LlamaShape
    from loadtest.measurements.measured_server import MeasuredServer

    shape = LlamaShape.from_config(json.loads(config.read_text())) if config else LlamaShape()

    async def at(url: str, key: str) -> Report:
        with console.status("") as status:
            async with MeasuredServer.connect(url, key) as server:
                return await measure(server, shape, status.update)

    settings = load_settings()
    if "url" in settings.model_fields_set:
        key = settings.api_key or settings.admin_key_path.read_text().strip()
        return asyncio.run(at(settings.url, key))
    flags = [] if slots is None else ["--max-loras", str(slots)]
    if host is not None:
        flags += ["--max-cpu-loras", str(host)]
    with started_server(console, *flags) as server:
        started(server)
        return asyncio.run(at(server.url, server.key))


def _four_bit(checkpoint: Path, console: Console) -> Report:
    from loadtest.measurements import four_bit
    from loadtest.measurements.measured_server import MeasuredServer
    from server.bundled_base import ensure_bundled_base
    from server.process.demo import DEMO_DIR, PROMPTS
    from training.data.recipe import load_recipe_data

    tasks = {}
    for name in PROMPTS:
        held_out = load_recipe_data(name).test
        examples = [(chat.messages[-2]["content"], chat.answer["content"]) for chat in held_out]
        tasks[name] = four_bit.Task(DEMO_DIR / name, examples)
    directories = {four_bit.BF16: ensure_bundled_base(), four_bit.FOUR_BIT: checkpoint}
    started: dict[str, tuple[StartedServer, float]] = {}
    with contextlib.ExitStack() as stack:
        for name, directory in directories.items():
            flags = ("--base", str(directory), "--kv-cache-gib", "1")
            server = stack.enter_context(started_server(console, *flags))
            weights = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
            started[name] = server, weights / _MIB

        async def measure() -> Report:
            with console.status("") as status:
                async with contextlib.AsyncExitStack() as connections:
                    contestants = {}
                    for name, (server, weights_mib) in started.items():
                        connecting = MeasuredServer.connect(server.url, server.key)
                        asked = await connections.enter_async_context(connecting)
                        resident_mib = server.own_bytes() / _MIB
                        contestants[name] = four_bit.Contestant(asked, resident_mib, weights_mib)
                    return await four_bit.run(contestants, tasks, status.update)

        return asyncio.run(measure())
