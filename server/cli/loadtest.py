"""`loraplex loadtest`: starts a server where none is given, and runs a scenario against it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from loadtest.started_server import started_server
from server.cli import measurements, workloads
from server.cli.tables import print_table
from server.cli.workloads import Duration, Kind, Load, Out, Place, Seed, Slo, Url, WeightsDir
from server.settings import load_settings

app = typer.Typer(help="Measure a server under load.", no_args_is_help=True)
app.command("sweep")(workloads.sweep)
app.command("compare")(workloads.compare)
app.command("capacity")(workloads.capacity)

SCENARIOS = ("lora-overhead", "four-bit", *measurements.SCENARIOS)
_MIB = 1 << 20


@app.command()
def run(
    scenario: Annotated[
        str,
        typer.Argument(help=f"A TOML file, a shipped one's name, or: {', '.join(SCENARIOS)}."),
    ],
    config: workloads.Config = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="four-bit: what `loraplex quantize` made of the bundled base."),
    ] = None,
    adapters: Annotated[
        int, typer.Option(min=16, help="many-adapters: how many are registered.")
    ] = 64,
    swaps: Annotated[
        int,
        typer.Option(min=0, help="many-adapters: only watch memory over so many swaps."),
    ] = 0,
    url: Url = None,
    server: Kind = "openai",
    weights_dir: WeightsDir = None,
    slo: Slo = None,
    out: Out = None,
    load: Load = None,
    seed: Seed = None,
    duration: Duration = None,
) -> None:
    """Run a scenario against LORAPLEX_URL, or else a server started for it.

    A TOML scenario leaves its report in --out and ends with code 1 if an answer was wrong or an
    objective missed; all options but --checkpoint, --adapters and --swaps are its. The others know
    --config (`four-bit` always starts two servers of its own, without it); they print a table, and
    the same as JSON on the last line.
    """
    if scenario not in SCENARIOS:
        place = Place(url, server, config, weights_dir)
        code = workloads.run_workload(scenario, place, slo, out, load, seed, duration)
        raise typer.Exit(code)
    from loadtest.errors import LoadTestError

    console = Console(stderr=True)
    try:
        if scenario == "four-bit":
            if checkpoint is None or not checkpoint.is_dir():
                raise typer.BadParameter("four-bit wants --checkpoint DIRECTORY")
            table, result = _four_bit(checkpoint, console)
        elif scenario in measurements.SCENARIOS:
            table, result = measurements.run_scenario(scenario, console, config, adapters, swaps)
        else:
            table, result = _lora_overhead(config, console)
    except LoadTestError as error:
        console.print(f"loraplex: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    print_table(table)
    print(json.dumps(result))


def _lora_overhead(config: Path | None, console: Console) -> tuple[Table, dict[str, Any]]:
    from loadtest.drive.random_adapters import LlamaShape
    from loadtest.measurements import lora_overhead
    from loadtest.measurements.client import Client

    shape = LlamaShape.from_config(json.loads(config.read_text())) if config else LlamaShape()

    async def measure(url: str, key: str) -> tuple[Table, dict[str, Any]]:
        with console.status("") as status:
            async with Client(url, key) as client:
                return await lora_overhead.run(client, shape, status.update)

    settings = load_settings()
    if "url" in settings.model_fields_set:
        key = settings.api_key or settings.admin_key_path.read_text().strip()
        return asyncio.run(measure(settings.url, key))
    with started_server(console, "--max-loras", "16") as server:
        return asyncio.run(measure(server.url, server.key))


def _four_bit(checkpoint: Path, console: Console) -> tuple[Table, dict[str, Any]]:
    from loadtest.measurements import four_bit
    from loadtest.measurements.client import Client
    from server.bundled_base import ensure_bundled_base
    from server.process.demo import DEMO_DIR, PROMPTS
    from training.data.recipe import load_recipe_data

    tasks = {}
    for name in PROMPTS:
        held_out = load_recipe_data(name).test
        examples = [(chat.messages[-2]["content"], chat.answer["content"]) for chat in held_out]
        tasks[name] = four_bit.Task(DEMO_DIR / name, examples)
    directories = {four_bit.BF16: ensure_bundled_base(), four_bit.FOUR_BIT: checkpoint}
    servers = {}
    with contextlib.ExitStack() as stack:
        for name, directory in directories.items():
            flags = ("--base", str(directory), "--kv-cache-gib", "1")
            server = stack.enter_context(started_server(console, *flags))
            weights = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
            client = Client(server.url, server.key)
            servers[name] = four_bit.Server(client, server.own_bytes() / _MIB, weights / _MIB)

        async def measure() -> tuple[Table, dict[str, Any]]:
            with console.status("") as status:
                return await four_bit.run(servers, tasks, status.update)

        return asyncio.run(measure())
