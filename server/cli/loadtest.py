"""The commands `loraplex loadtest`. They start a server if none is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from server.cli import measurements, workloads
from server.cli.commands import Commands
from server.cli.tables import print_table
from server.cli.workloads import Duration, Kind, Load, Out, Place, Seed, Slo, Url, WeightsDir

app = Commands(
    help="Measure a server under load, and compare and extrapolate such runs.", no_args_is_help=True
)
app.command("sweep", epilog=workloads.SWEEP_EXAMPLE)(workloads.sweep)
app.command("compare", epilog=workloads.COMPARE_EXAMPLE)(workloads.compare)
app.command("capacity", epilog=workloads.CAPACITY_EXAMPLE)(workloads.capacity)

EXAMPLES = """Examples:

loraplex loadtest run sixteen_adapters --duration 60

loraplex loadtest run my_scenario.toml --url http://127.0.0.1:8000 --out report

loraplex loadtest run hot-swap
"""


@app.command(epilog=EXAMPLES)
def run(
    scenario: Annotated[
        str,
        typer.Argument(
            help="A TOML file, the name of a TOML scenario that is shipped, or one of: "
            f"{', '.join(measurements.MEASUREMENTS)}."
        ),
    ],
    config: workloads.Config = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="For four-bit: the bundled base as `loraplex quantize` wrote it."),
    ] = None,
    adapters: Annotated[
        int, typer.Option(min=16, help="For many-adapters: how many adapters to register.")
    ] = 128,
    swaps: Annotated[
        int,
        typer.Option(min=0, help="For many-adapters: only measure memory, over this many swaps."),
    ] = 0,
    slots: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="For many-adapters: slots of the server that is started. Default: the server's.",
        ),
    ] = None,
    url: Url = None,
    server: Kind = "openai",
    weights_dir: WeightsDir = None,
    slo: Slo = None,
    out: Out = None,
    load: Load = None,
    seed: Seed = None,
    duration: Duration = None,
) -> None:
    """Run a scenario against LORAPLEX_URL, or against a server that is started for it.

    A TOML scenario writes its report to --out. It takes all options except --checkpoint,
    --adapters, --swaps and --slots. The exit code is 1 if an answer was wrong or an objective was
    missed.

    The other scenarios take --config. They print a table, and the same data as JSON on the last
    line. `four-bit` always starts two servers of its own, and takes only --checkpoint.

    The exit code is 2 if the server couldn't be measured.
    """
    if scenario not in measurements.MEASUREMENTS:
        place = Place(url, server, config, weights_dir)
        code = workloads.run_workload(scenario, place, slo, out, load, seed, duration)
        raise typer.Exit(code)
    options = measurements.Options(config, checkpoint, adapters, swaps, slots)
    with workloads.measuring():
        table, result = measurements.run_measurement(scenario, Console(stderr=True), options)
    print_table(table)
    print(json.dumps(result))
