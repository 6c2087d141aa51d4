"""The command `loraplex evaluate`, which scores models and adapters on held-out data."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from server.cli.console import fail
from server.cli.tables import print_table
from server.cli.training.shared import BaseFlag, base_or_bundled, explained, read, refuse

if TYPE_CHECKING:
    from adapters_registry.rollout.scores import Difference, Scores
    from training.data.conversations import Conversation
    from training.evaluation.candidates import Candidate

SERVED = "served:"
EXAMPLES = """Examples:

loraplex evaluate my-adapter base --data held-out.jsonl

loraplex evaluate served:my-adapter@2 --data held-out.jsonl --no-worse-than served:my-adapter
"""


def evaluate(
    candidates: Annotated[
        list[str],
        typer.Argument(
            help="What to score: base, a directory with an adapter or a model, or served:NAME for "
            "a model on the server at LORAPLEX_URL."
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(help="Held-out conversations, in any format that `loraplex train` takes."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A recipe whose held-out examples are used.")
    ] = None,
    base: BaseFlag = None,
    over: Annotated[
        str,
        typer.Option(
            help="The base that adapters are added to: trained (the base as in their training), "
            "original (the base as it is), or nf4 (rounded to NF4)."
        ),
    ] = "trained",
    limit: Annotated[
        int | None, typer.Option(help="Score on this many examples only.", min=1)
    ] = None,
    metric: Annotated[
        str,
        typer.Option(
            help="The metric for --fail-under and --no-worse-than: exact_match, rouge_l, "
            "bleu, json_valid or loss."
        ),
    ] = "exact_match",
    fail_under: Annotated[
        float | None,
        typer.Option(
            help="End with exit code 1 if the first candidate's metric is worse than this."
        ),
    ] = None,
    no_worse_than: Annotated[
        str | None,
        typer.Option(
            help="End with exit code 1 if the first candidate may be worse than this one by more "
            "than --margin."
        ),
    ] = None,
    margin: Annotated[float, typer.Option(help="How much worse is still accepted.", min=0)] = 0.02,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Score candidates on held-out conversations, and compare each with the first.

    Differences come with 95 % intervals. Local candidates run on the GPU if there is one.
    """
    from adapters_registry.rollout.scores import METRICS, paired_difference
    from training.evaluation.evaluate import evaluate as score

    with explained():
        if metric not in METRICS:
            raise typer.BadParameter(f"--metric must be one of {', '.join(METRICS)}, not {metric}")
        base = base_or_bundled(base)
        examples = _held_out(data, recipe)[:limit]
        names = list(dict.fromkeys([*candidates, *([no_worse_than] if no_worse_than else [])]))
        scores = {name: score(open_candidate(name, base, over), base, examples) for name in names}
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
    if faults:
        fail("\n".join(f"{names[0]}: {fault}" for fault in faults))


def _held_out(data: Path | None, recipe: str | None) -> list[Conversation]:
    from training.data.recipe import load_recipe_data

    if data is not None:
        return read(data, says_format=False)
    if recipe is None:
        refuse("nothing to evaluate on: give --data or --recipe")
    return load_recipe_data(recipe).test


def open_candidate(name: str, base: Path, over: str = "trained") -> Candidate:
    """Open the candidate with this name on the command line.

    Raises:
        TrainingError: there is no such candidate, or it cannot be loaded.
    """
    from server.cli.client import api_key
    from server.settings import load_settings
    from training.evaluation.candidates import LocalModel, ServedModel, is_adapter

    nf4 = {"trained": None, "original": False, "nf4": True}.get(over, over)
    if isinstance(nf4, str):
        refuse(f"--over must be trained, original or nf4, not {over}")
    if name.startswith(SERVED):
        settings = load_settings()
        return ServedModel(settings.url, api_key(settings), name.removeprefix(SERVED))
    if name == "base":
        return LocalModel(base, nf4=bool(nf4))
    directory = Path(name)
    if is_adapter(directory):
        return LocalModel(base, directory, nf4=nf4)
    if not (directory / "config.json").is_file():
        refuse(
            f"{name!r} can't be evaluated: name base, a directory with an adapter or a model, "
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
    """Return the reasons against promoting the first candidate. A lower loss is better."""
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
    table = Table("candidate", *columns, title=f"Scores on {count} held-out examples")
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
