"""The command `loraplex compare`, which compares training methods on the user's data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from server.cli.tables import print_table
from server.cli.training.shared import DATA_HELP, BaseFlag, base_or_bundled, data_of, explained

EXAMPLES = """Examples:

loraplex compare runs/which --data chats.jsonl --test held-out.jsonl

loraplex compare runs/ranks --recipe smart-home-r16 --method lora --rank 4 --rank 16 --rank 64
"""


def compare(
    output: Annotated[
        Path,
        typer.Argument(
            help="A directory for the trials and the report. If the command is repeated, it "
            "continues from there."
        ),
    ],
    data: Annotated[Path | None, typer.Option(help=DATA_HELP)] = None,
    test: Annotated[
        Path | None, typer.Option(help="Held-out conversations to score on, in the same formats.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="A recipe for the data and for all values that no flag sets."),
    ] = None,
    base: BaseFlag = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="lora, qlora or full. Repeat it for several; without it all three are compared."
        ),
    ] = None,
    rank: Annotated[
        list[int] | None,
        typer.Option(help="The rank of the adapters. Repeat it to compare several ranks."),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            help="The modules to adapt, such as q_proj,v_proj. Repeat it to compare several sets."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="How many optimiser steps each arm runs.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Instead of steps: how many minutes each arm trains."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="How many examples each step learns from.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many times each arm is trained.", min=1)] = 3,
    rate: Annotated[
        list[float] | None,
        typer.Option(
            help="A learning rate to try, as a factor of the method's default. Repeat it for more; "
            "without it 1/3, 1 and 3 are tried."
        ),
    ] = None,
    metric: Annotated[
        str,
        typer.Option(help="The metric that decides: exact_match, rouge_l, bleu, json_valid, loss."),
    ] = "exact_match",
    limit: Annotated[
        int | None, typer.Option(help="Score on this many held-out examples only.", min=1)
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(help="What an hour of this machine costs, for the table's last column."),
    ] = None,
) -> None:
    """Train with each method on your data, and recommend one of them.

    The command prints a table and a recommendation, and writes a plot and an HTML page.
    """
    from training.comparison.arms import make_arms
    from training.comparison.compare import RATE_FACTORS
    from training.comparison.compare import compare as run
    from training.comparison.recommendation import caveats, recommendation
    from training.comparison.report import REPORT_HTML, columns, table_rows, write_report
    from training.data.recipe import METHODS, load_recipe, make_recipe

    changes = {"num_steps": steps, "batch_size": batch_size}
    console = Console()
    with explained():
        plan = load_recipe(recipe, **changes) if recipe else make_recipe(changes)
        split = data_of(plan, data, test)
        with Console(stderr=True).status("comparing") as status:
            comparison = run(
                base_or_bundled(base),
                split.train,
                split.test[:limit],
                make_arms(plan, method or METHODS, rank or [], targets or []),
                output,
                metric=metric,
                seeds=range(seeds),
                rate_factors=rate or RATE_FACTORS,
                minutes=minutes,
                progress=status.update,
            )
        write_report(comparison, output, price)
    head, *facts = zip(columns(comparison), *table_rows(comparison, price), strict=True)
    table = Table(*head, title=f"{comparison.num_examples} held-out examples")
    for cells in facts:
        table.add_row(*cells)
    print_table(table)
    for line in (recommendation(comparison), *caveats(comparison)):
        console.print(line, soft_wrap=True, highlight=False)
    console.print(f"report: {output / REPORT_HTML}", soft_wrap=True, highlight=False)
