"""`loraplex loadtest`: runs a scenario, on a server that is started if none is given."""

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

app = Commands(help="Measure a server under load.", no_args_is_help=True)
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
            help="A TOML file, the name of one that comes with the project, or one of: "
            f"{', '.join(measurements.MEASUREMENTS)}."
        ),
    ],
    config: workloads.Config = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="four-bit: what `loraplex quantize` made of the bundled base."),
    ] = None,
    adapters: Annotated[
        int, typer.Option(min=16, help="many-adapters: how many adapters are registered.")
    ] = 64,
    swaps: Annotated[
        int,
        typer.Option(min=0, help="many-adapters: only watch the memory over so many swaps."),
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
    """Run a scenario against LORAPLEX_URL, or against a server that is started for it.

    A TOML scenario writes its report to --out. It ends with code 1 if an answer was wrong or an
    objective was missed. It takes all options but --checkpoint, --adapters and --swaps. The other
    scenarios take --config; `four-bit` always starts two servers of its own, and takes only
    --checkpoint. They print a table, and the same as JSON on the last line. Code 2 means that the
    server couldn't be measured.
    """
    if scenario not in measurements.MEASUREMENTS:
        place = Place(url, server, config, weights_dir)
        code = workloads.run_workload(scenario, place, slo, out, load, seed, duration)
        raise typer.Exit(code)
    options = measurements.Options(config, checkpoint, adapters, swaps)
    with workloads.measuring():
        table, result = measurements.run_measurement(scenario, Console(stderr=True), options)
    print_table(table)
    print(json.dumps(result))
