"""The command `loraplex evaluate`, which scores models and adapters on held-out data."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class Comparison:
    """Candidates' scores on held-out examples, and how far the first is from each other one."""

    num_examples: int
    scores: dict[str, Scores]
    metric: str
    differences: dict[str, Difference]
    """The first one's metric minus that of each other one."""

    def facts(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            "num_examples": self.num_examples,
            "scores": {name: scores.summary() for name, scores in self.scores.items()},
            "metric": self.metric,
            "first_minus": {name: asdict(gap) for name, gap in self.differences.items()},
        }

    def print(self) -> None:
        """Print a table of the scores, and a line for each difference."""
        summaries = {name: scores.summary() for name, scores in self.scores.items()}
        columns = list(next(iter(summaries.values())))
        title = f"Scores on {self.num_examples} held-out examples"
        table = Table("candidate", *columns, title=title)
        for name, summary in summaries.items():
            table.add_row(name, *(f"{summary[column]:.4f}" for column in columns))
        console = Console()
        print_table(table)
        first = next(iter(self.scores))
        for name, gap in self.differences.items():
            verdict = "significant" if gap.is_significant else "not significant"
            console.print(
                f"{self.metric}: {first} minus {name} is {gap.mean:+.4f} "
                f"(95 %: {gap.low:+.4f} to {gap.high:+.4f}; {verdict})",
                soft_wrap=True,
                highlight=False,
            )


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
    from adapters_registry.rollout.scores import METRICS

    with explained():
        if metric not in METRICS:
            raise typer.BadParameter(f"--metric must be one of {', '.join(METRICS)}, not {metric}")
        base = base_or_bundled(base)
        examples = _held_out(data, recipe)[:limit]
        names = list(dict.fromkeys([*candidates, *([no_worse_than] if no_worse_than else [])]))
        opened = ((name, open_candidate(name, base, over)) for name in names)  # one at a time
        comparison = compare(opened, base, examples, metric)
    if as_json:
        print(json.dumps(comparison.facts()))
    else:
        comparison.print()
    faults = _faults(comparison, fail_under, no_worse_than, margin)
    if faults:
        fail("\n".join(f"{names[0]}: {fault}" for fault in faults))


def compare(
    candidates: Iterable[tuple[str, Candidate]],
    base: Path,
    examples: list[Conversation],
    metric: str = "exact_match",
) -> Comparison:
    """Score candidates, given with their names, and compare the first with each other one.

    Raises:
        TrainingError: a candidate cannot be asked, or the data has no such metric.
    """
    from adapters_registry.rollout.scores import paired_difference
    from training.evaluation.evaluate import evaluate as score

    scores = {name: score(candidate, base, examples) for name, candidate in candidates}
    first, *others = scores
    if metric not in scores[first].values:
        refuse(f"this data has no {metric}: its answers aren't all JSON")
    differences = {name: paired_difference(scores[first], scores[name], metric) for name in others}
    return Comparison(len(examples), scores, metric, differences)


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
    comparison: Comparison, fail_under: float | None, no_worse_than: str | None, margin: float
) -> list[str]:
    """Return the reasons against promoting the first candidate. A lower loss is better."""
    metric = comparison.metric
    sign = -1 if metric == "loss" else 1
    faults = []
    mean = next(iter(comparison.scores.values())).mean(metric)
    if fail_under is not None and sign * mean < sign * fail_under:
        faults.append(f"{metric} is {mean:.4f}, and --fail-under is {fail_under}")
    difference = comparison.differences.get(no_worse_than or "")
    if difference is not None:
        worst = difference.low if sign > 0 else -difference.high
        if worst < -margin:
            faults.append(
                f"{metric} minus that of {no_worse_than} is {difference.mean:+.4f}, between "
                f"{difference.low:+.4f} and {difference.high:+.4f}: more than {margin} worse can't "
                "be ruled out"
            )
    return faults
