"""`loraplex evaluate` and `compare`: what a model is worth, and which method pays."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from server.cli.tables import print_table
from server.cli.training import BaseFlag, base_or_bundled, explained

if TYPE_CHECKING:
    from training.data.conversations import Conversation
    from training.evaluation.candidates import Candidate
    from training.evaluation.scores import Difference, Scores

SERVED = "served:"


def evaluate(
    candidates: Annotated[
        list[str],
        typer.Argument(
            help="base; a directory with an adapter or a model; served:NAME at LORAPLEX_URL."
        ),
    ],
    data: Annotated[Path | None, typer.Option(help="Held-out chat-format JSONL.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A recipe, whose held-out part is used.")
    ] = None,
    base: BaseFlag = None,
    over: Annotated[
        str,
        typer.Option(help="Adapters over: trained (what they were trained over), original, nf4."),
    ] = "trained",
    limit: Annotated[int | None, typer.Option(help="Only so many examples.", min=1)] = None,
    metric: Annotated[
        str,
        typer.Option(help="What the gates look at: exact_match, rouge_l, bleu, json_valid, loss."),
    ] = "exact_match",
    fail_under: Annotated[
        float | None,
        typer.Option(help="Code 1 if the first candidate's metric is worse than this."),
    ] = None,
    no_worse_than: Annotated[
        str | None,
        typer.Option(
            help="Code 1 if the first candidate may be worse than this one by over --margin."
        ),
    ] = None,
    margin: Annotated[float, typer.Option(help="How much worse is still accepted.", min=0)] = 0.02,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Score candidates on held-out conversations; each against the first, with 95 % intervals."""
    from training.evaluation.evaluate import evaluate as score
    from training.evaluation.scores import METRICS, paired_difference

    with explained():
        if metric not in METRICS:
            raise typer.BadParameter(f"--metric is one of {', '.join(METRICS)}, not {metric}")
        base = base_or_bundled(base)
        examples = _held_out(data, recipe)[:limit]
        names = list(dict.fromkeys([*candidates, *([no_worse_than] if no_worse_than else [])]))
        scores = {name: score(_open(name, base, over), base, examples) for name in names}
        if metric not in scores[names[0]].values:
            raise typer.BadParameter(f"this data has no {metric}: its answers aren't all JSON")
    first = scores[names[0]]
    differences = {name: paired_difference(first, scores[name], metric) for name in names[1:]}
    if as_json:
        facts = {
            "num_examples": len(examples),
            "scores": {name: scores[name].summary() for name in names},
            "metric": metric,
            "first_minus": {name: asdict(difference) for name, difference in differences.items()},
        }
        print(json.dumps(facts))
    else:
        _print(scores, metric, differences, len(examples))
    faults = _faults(first, metric, fail_under, no_worse_than, margin, differences)
    for fault in faults:
        Console(stderr=True).print(f"loraplex: {names[0]}: {fault}", markup=False, soft_wrap=True)
    if faults:
        raise typer.Exit(1)


def compare(
    output: Annotated[Path, typer.Argument(help="A directory; a repeated command goes on in it.")],
    data: Annotated[Path | None, typer.Option(help="Chat-format JSONL to train on.")] = None,
    test: Annotated[Path | None, typer.Option(help="Chat-format JSONL, held out.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A recipe, for its data and what flags don't say.")
    ] = None,
    base: BaseFlag = None,
    method: Annotated[
        list[str] | None, typer.Option(help="lora, qlora, full; repeat; default: all.")
    ] = None,
    rank: Annotated[
        list[int] | None, typer.Option(help="Rank of the adapters; repeat to compare several.")
    ] = None,
    targets: Annotated[
        list[str] | None, typer.Option(help="Modules, with commas; repeat to compare several sets.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps, the same for all.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Or minutes of training, the same for all.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples a step.")] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each arm.", min=1)] = 3,
    rate: Annotated[
        list[float] | None,
        typer.Option(help="Learning rate to try, times the method's default; repeat; 1/3, 1, 3."),
    ] = None,
    metric: Annotated[str, typer.Option(help="What decides.")] = "exact_match",
    limit: Annotated[int | None, typer.Option(help="Held-out examples to score on.", min=1)] = None,
    price: Annotated[float | None, typer.Option(help="Of an hour of this machine.")] = None,
) -> None:
    """Train by each method on your data, and say which pays: table, HTML, PNG, recommendation."""
    from server.cli.training import data_of
    from training.comparison.compare import RATE_FACTORS, caveats, make_arms, recommendation
    from training.comparison.compare import compare as run
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


def _held_out(data: Path | None, recipe: str | None) -> list[Conversation]:
    from training.data.conversations import read_conversations
    from training.data.recipe import load_recipe_data
    from training.errors import TrainingError

    if data is not None:
        return read_conversations(data)
    if recipe is None:
        raise TrainingError("nothing to evaluate on: give --data or --recipe")
    return load_recipe_data(recipe).test


def _open(name: str, base: Path, over: str) -> Candidate:
    """What a name on the command line stands for."""
    from server.cli.client import api_key
    from server.settings import load_settings
    from training.errors import TrainingError
    from training.evaluation.candidates import LocalModel, ServedModel, is_adapter

    nf4 = {"trained": None, "original": False, "nf4": True}.get(over, over)
    if isinstance(nf4, str):
        raise TrainingError(f"--over is trained, original or nf4, not {over}")
    if name.startswith(SERVED):
        settings = load_settings()
        return ServedModel(settings.url, api_key(settings), name.removeprefix(SERVED))
    if name == "base":
        return LocalModel(base, nf4=bool(nf4))
    directory = Path(name)
    if is_adapter(directory):
        return LocalModel(base, directory, nf4=nf4)
    if not (directory / "config.json").is_file():
        raise TrainingError(
            f"{name!r} is nothing to evaluate: name base, a directory with an adapter or a model, "
            "or served:NAME"
        )
    return LocalModel(directory)


def _faults(
    first: Scores,
    metric: str,
    fail_under: float | None,
    no_worse_than: str | None,
    margin: float,
    differences: dict[str, Difference],
) -> list[str]:
    """Why the first candidate shouldn't be promoted; a loss is better when it is lower."""
    sign = -1 if metric == "loss" else 1
    faults = []
    mean = first.mean(metric)
    if fail_under is not None and sign * mean < sign * fail_under:
        faults.append(f"{metric} is {mean:.4f}, and --fail-under is {fail_under}")
    if no_worse_than is not None and no_worse_than in differences:
        difference = differences[no_worse_than]
        worst = difference.low if sign > 0 else -difference.high
        if worst < -margin:
            faults.append(
                f"{metric} minus that of {no_worse_than} is {difference.mean:+.4f}, between "
                f"{difference.low:+.4f} and {difference.high:+.4f}: more than {margin} worse can't "
                "be ruled out"
            )
    return faults


def _print(
    scores: dict[str, Scores], metric: str, differences: dict[str, Difference], count: int
) -> None:
    summaries: dict[str, dict[str, Any]] = {name: s.summary() for name, s in scores.items()}
    columns = list(next(iter(summaries.values())))
    table = Table("candidate", *columns, title=f"{count} held-out examples")
    for name, summary in summaries.items():
        table.add_row(name, *(f"{summary[column]:.4f}" for column in columns))
    console = Console()
    print_table(table)
    first = next(iter(scores))
    for name, gap in differences.items():
        verdict = "significant" if gap.is_significant else "not significant"
        console.print(
            f"{metric}: {first} minus {name} is {gap.mean:+.4f} "
            f"(95 %: {gap.low:+.4f} to {gap.high:+.4f}; {verdict})",
            soft_wrap=True,
            highlight=False,
        )
