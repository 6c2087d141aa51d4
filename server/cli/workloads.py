"""The commands `loraplex loadtest` that work with TOML scenarios and their reports."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from loadtest.started_server import started_server
from server.cli.console import ending_on
from server.settings import load_settings

if TYPE_CHECKING:
    from loadtest.drive.run import Target
    from loadtest.plan.scenario import Scenario

RUNS_DIR = Path("loadtest-runs")
SWEEP_EXAMPLE = "Example: loraplex loadtest sweep my_scenario.toml --slo 'ttft_p99<500ms'"
COMPARE_EXAMPLE = "Example: loraplex loadtest compare loadtest-runs/before loadtest-runs/after"
CAPACITY_EXAMPLE = "Example: loraplex loadtest capacity loadtest-runs/a --slots 4,8 --replicas 1,2"

Url = Annotated[
    str | None,
    typer.Option(help="The server's URL. Default: LORAPLEX_URL; if unset, a server is started."),
]
Kind = Annotated[
    str, typer.Option("--server", help="How requests name the adapter: openai or llama-cpp.")
]
Config = Annotated[
    Path | None,
    typer.Option(
        help="The config.json of the base that random adapters must fit. Default: the bundled one."
    ),
]
WeightsDir = Annotated[
    Path | None,
    typer.Option(help="Folder for random adapters, from which vLLM's own server reads them."),
]
Slo = Annotated[
    str | None,
    typer.Option(
        help="Objectives, such as 'ttft_p99<500ms,error_rate<0.1%'. Default: the scenario's."
    ),
]
Out = Annotated[
    Path | None, typer.Option(help=f"Folder for the report. Default: a new one in {RUNS_DIR}/.")
]
Load = Annotated[
    float | None, typer.Option(help="Requests per second, or clients. Default: the scenario's.")
]
Seed = Annotated[int | None, typer.Option(help="The seed. Default: the scenario's.")]
Duration = Annotated[float | None, typer.Option(help="Seconds of load. Default: the scenario's.")]


@dataclass(frozen=True)
class Place:
    """The flags that say where to measure."""

    url: str | None = None
    server: str = "openai"
    config: Path | None = None
    weights_dir: Path | None = None

    @contextlib.contextmanager
    def target(self, scenario: Scenario, console: Console) -> Iterator[Target]:
        """Provide the server to measure. One is started if none is named."""
        from loadtest.drive.random_adapters import LlamaShape
        from loadtest.drive.run import Target
        from loadtest.drive.server_kind import ServerKind
        from loadtest.errors import LoadTestError

        if self.server not in set(ServerKind):
            raise LoadTestError(f"--server must be one of {', '.join(ServerKind)}")
        shape = LlamaShape()
        if self.config is not None:
            shape = LlamaShape.from_config(json.loads(self.config.read_text()))
        settings = load_settings()

        def at(url: str, key: str) -> Target:
            return Target(url, key, ServerKind(self.server), shape, self.weights_dir)

        if self.url is not None or "url" in settings.model_fields_set:
            key = settings.api_key or ""
            if not key and settings.admin_key_path.is_file():
                key = settings.admin_key_path.read_text().strip()
            yield at(self.url or settings.url, key)
            return
        with started_server(console, *scenario.server_flags) as server:
            yield at(server.url, server.key)


def run_workload(
    name: str,
    place: Place,
    slo: str | None,
    out: Path | None,
    load: float | None,
    seed: int | None,
    duration: float | None,
) -> int:
    """Run a TOML scenario. Returns the exit code."""
    from loadtest.command.run import run_and_report
    from loadtest.plan.scenario_file import adjusted, load_scenario
    from loadtest.report.slo import parse_slo

    console = Console(stderr=True, highlight=False)

    with measuring():
        scenario = adjusted(load_scenario(name), load=load, seed=seed, seconds=duration)
        objectives = parse_slo(scenario.slo if slo is None else slo)
        with place.target(scenario, console) as target:
            return run_and_report(
                scenario, target, objectives, out or new_folder(name), console, show
            )


def sweep(
    scenario: Annotated[
        str, typer.Argument(help="A TOML file, or the name of a shipped scenario.")
    ],
    config: Config = None,
    url: Url = None,
    server: Kind = "openai",
    weights_dir: WeightsDir = None,
    slo: Slo = None,
    out: Out = None,
    load: Load = None,
    seed: Seed = None,
    duration: Duration = None,
    precision: Annotated[
        float, typer.Option(help="Stop when the load is known to this relative precision.")
    ] = 0.1,
) -> None:
    """Find the highest load that meets the objectives.

    It doubles the load until an objective is missed, then bisects. Each step is a run.
    """
    from loadtest.command import sweep as sweeping
    from loadtest.plan.scenario_file import adjusted, load_scenario
    from loadtest.report.slo import parse_slo

    console = Console(stderr=True, highlight=False)

    with measuring():
        asked = adjusted(load_scenario(scenario), load=load, seed=seed, seconds=duration)
        objectives = parse_slo(asked.slo if slo is None else slo)
        folder = out or new_folder(scenario)
        with Place(url, server, config, weights_dir).target(asked, console) as target:
            code = sweeping.sweep(asked, target, objectives, precision, folder, console, show)
    raise typer.Exit(code)


def compare(
    first: Annotated[Path, typer.Argument(help="The folder of a run's report.")],
    second: Annotated[Path, typer.Argument(help="The folder of another run's report.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compare two runs: print ratios of the second to the first, with 95 % intervals."""
    from loadtest.report import comparison
    from loadtest.report.recorded import read_run

    with measuring():
        rows = comparison.compare([(read_run(first), read_run(second))])
    if as_json:
        print(json.dumps([vars(row) for row in rows]))
        return
    table = Table("", str(first), str(second), "ratio", "95 % interval", "")
    for row in rows:
        interval = f"{row.low:.3f} to {row.high:.3f}"
        cells = f"{row.first:.1f}", f"{row.second:.1f}", f"{row.ratio:.3f}", interval
        table.add_row(row.name, *cells, "differs" if row.differs else "")
    show(table)


def capacity(
    run: Annotated[Path, typer.Argument(help="The folder of a run's report.")],
    ran_with: Annotated[
        str | None,
        typer.Option(
            help="The run's slots and host cache, for example 8,32. Default: the scenario's."
        ),
    ] = None,
    slots: Annotated[
        str | None, typer.Option(help="Numbers of slots to simulate, for example 4,8,16.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Host caches to simulate, in adapters: 32,64.")
    ] = None,
    replicas: Annotated[str, typer.Option(help="Numbers of replicas to simulate: 1,2.")] = "1",
    trace: Annotated[
        Path | None,
        typer.Option(help="A CSV file of other requests to simulate at the run's speed."),
    ] = None,
) -> None:
    """Simulate a run's requests with other numbers of slots, host caches and replicas.

    The run itself is simulated as well, as a check of the simulation.
    """
    from loadtest.capacity.report import report
    from loadtest.report.recorded import read_run

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    with measuring():
        recorded = read_run(run)
        ran = numbers(ran_with) if ran_with else None
        asked = [numbers(text) if text else None for text in (slots, host, replicas)]
        for thing in report(recorded, ran, asked[0], asked[1], asked[2] or [1], trace):
            show(thing)


def new_folder(name: str) -> Path:
    """Return a folder for a report, named after the scenario and the time."""
    return RUNS_DIR / f"{Path(name).stem}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def show(thing: Any) -> None:
    """Print a table or a line."""
    Console(highlight=False).print(thing, markup=False, soft_wrap=isinstance(thing, str))


@contextlib.contextmanager
def measuring() -> Iterator[None]:
    """End the command with one line and code 2 if the server can't be measured as asked."""
    from loadtest.errors import LoadTestError

    with ending_on(LoadTestError, OSError, ValueError):
        yield
