"""`loraplex loadtest sweep`: runs a scenario at one load after another."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from loadtest.command.run import FAILED, INTERRUPTED, PASSED, measure, write
from loadtest.command.search import Trial, highest_passed, next_load
from loadtest.drive.run import Target
from loadtest.errors import LoadTestError
from loadtest.plan.scenario import Scenario
from loadtest.plan.scenario_file import adjusted, nominal_load
from loadtest.report import report
from loadtest.report.slo import Objective

_COLUMNS = ("load", "kept", "requests/s", "tokens/s", "open", "TTFT P50", "TTFT P99", "TPOT P50")


@dataclass(frozen=True)
class Step:
    """A load and the summary of its run."""

    load: float
    passed: bool
    summary: dict[str, Any]

    @property
    def concurrency(self) -> float:
        """Return how many requests were open on average, by Little's law."""
        answered = self.summary["throughput"]["requests_per_second"]
        return float(answered * self.summary["latency"]["all"]["e2e"].get("mean", 0.0) / 1000)

    def cells(self) -> list[str]:
        """Return a row of the table."""
        speed, latency = self.summary["throughput"], self.summary["latency"]["all"]
        return [
            f"{self.load:.4g}",
            "yes" if self.passed else "no",
            f"{speed['requests_per_second']:.2f}",
            f"{speed['output_tokens_per_second']:.1f}",
            f"{self.concurrency:.1f}",
            f"{latency['ttft'].get('p50', 0):.1f}",
            f"{latency['ttft'].get('p99', 0):.1f}",
            f"{latency['tpot'].get('p50', 0):.1f}",
        ]


def sweep(
    scenario: Scenario,
    target: Target,
    objectives: list[Objective],
    precision: float,
    out: Path,
    console: Console,
    show: Callable[[Any], None],
) -> int:
    """Find the highest load that meets the objectives. Returns the exit code: 1 if none does.

    Raises:
        LoadTestError: there are no objectives, or the server can't be measured.
    """
    if not objectives:
        raise LoadTestError("a sweep needs objectives: give --slo, or slo in the scenario")
    whole = scenario.arrivals.process == "closed"
    steps: list[Step] = []
    interrupted = False
    while not interrupted:
        trials = [Trial(step.load, step.passed) for step in steps]
        load = next_load(trials, nominal_load(scenario), precision, whole=whole)
        if load is None:
            break
        console.print(f"load {load:.4g}")
        finished = measure(adjusted(scenario, load=load), target, console)
        write(finished, objectives, out / f"load-{load:.4g}")
        passed = report.has_passed(finished.summary, objectives) and finished.run.complete
        interrupted = not finished.run.complete
        if not interrupted:
            steps.append(Step(load, passed, finished.summary))
    best = highest_passed([Trial(step.load, step.passed) for step in steps])
    _write(out, scenario, steps, best)
    show(_table(steps))
    show(f"highest load that meets the objectives: {'none' if best is None else f'{best:.4g}'}")
    show(f"written to {out / report.PAGE}")
    return INTERRUPTED if interrupted else FAILED if best is None else PASSED


def _table(steps: Sequence[Step]) -> Table:
    table = Table(*_COLUMNS)
    for step in sorted(steps, key=lambda step: step.load):
        table.add_row(*step.cells())
    return table


def _write(out: Path, scenario: Scenario, steps: Sequence[Step], best: float | None) -> None:
    from loadtest.report import plots
    from loadtest.report.page import html_table, page

    out.mkdir(parents=True, exist_ok=True)
    ordered = sorted(steps, key=lambda step: step.load)
    body = {
        "question": scenario.question,
        "highest_load": best,
        "steps": [{"load": s.load, "passed": s.passed, "summary": s.summary} for s in ordered],
    }
    (out / "sweep.json").write_text(json.dumps(body, indent=1) + "\n")
    points = [(s.concurrency, s.summary["throughput"]["output_tokens_per_second"]) for s in ordered]
    tails = [(s.load, s.summary["latency"]["all"]["ttft"].get("p99", 0.0)) for s in ordered]
    sections = [
        (f"Highest load that meets the objectives: {best}", ""),
        ("Steps (latencies in ms)", html_table(_COLUMNS, [step.cells() for step in ordered])),
        ("Throughput against concurrency", plots.throughput_by_concurrency(points)),
        ("P99 of the first token against load", plots.latency_by_load(tails)),
    ]
    (out / report.PAGE).write_text(page(scenario.question, sections))
