"""Makes one self-contained HTML page of a run or a sweep: inline SVG, no scripts."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from loadtest.outcome.run_record import Run
from loadtest.report import plots
from loadtest.report.measures import counted
from loadtest.report.report import KINDS, column_name, headline, remarks
from loadtest.report.slo import Objective

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 100rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left }
svg { width: 100%; height: auto } pre { overflow: auto; background: #f6f6f6; padding: 1rem }
"""
_STATISTICS = ("count", "mean", "p50", "p90", "p95", "p99", "p999", "max")


def run_page(run: Run, summary: dict[str, Any], objectives: Sequence[Objective]) -> str:
    """Return the page of a run."""
    outcomes = counted(run)
    answered = [outcome for outcome in outcomes if outcome.ok]
    points = plots.concurrency_points(outcomes, run.seconds)
    notes = "".join(f"<li>{html.escape(line)}</li>" for line in remarks(summary, list(objectives)))
    sections = [
        ("", f"<p>{html.escape(headline(summary))}</p><ul>{notes}</ul>"),
        ("Latency, ms", _latency_table(summary)),
        ("How many requests within how long", plots.latency_cdfs(answered)),
        (_over_the_run(run), plots.timeline(run.outcomes, run.churn, run.seconds)),
        ("First-token time of each adapter", plots.adapter_heat_map(answered, run.seconds)),
        ("Throughput against concurrency", plots.throughput_by_concurrency(points)),
        ("The server's own metrics", _server_table(summary["server"])),
        (
            "Everything as JSON",
            f"<details><pre>{html.escape(json.dumps(summary, indent=1))}</pre></details>",
        ),
    ]
    return page(summary["question"], sections)


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """Return a page of titled pieces of HTML."""
    parts = [f"<h2>{html.escape(name)}</h2>{body}" if name else body for name, body in sections]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>{''.join(parts)}</html>\n"
    )


def html_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table of HTML."""
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _over_the_run(run: Run) -> str:
    """Return the timeline's heading, which explains the lines of changes if there are any."""
    kinds = dict.fromkeys("failed" if record.error else record.kind for record in run.churn)
    legend = ", ".join(
        f"{plots.CHANGES[kind].colour_name} {plots.CHANGES[kind].word}" for kind in kinds
    )
    return f"Over the run (changes: {legend})" if legend else "Over the run"


def _latency_table(summary: dict[str, Any]) -> str:
    rows = []
    latency = summary["latency"]
    groups = {"": latency["all"]}
    for group in ("tier", "tenant", "adapter"):
        groups |= {f", {group} {name}": values for name, values in latency[group].items()}
    for name, kinds in groups.items():
        for kind, values in kinds.items():
            if name and kind not in ("ttft", "e2e"):
                continue
            rows.append([KINDS[kind] + name, *(values.get(column, "") for column in _STATISTICS)])
    lag = summary["tester"]["lag"]
    rows.append(["tester's lag", *(lag.get(column, "") for column in _STATISTICS)])
    return html_table(["", *map(column_name, _STATISTICS)], rows)


def _server_table(server: dict[str, dict[str, float]]) -> str:
    rows = [
        [name, *(f"{values[key]:.6g}" for key in ("first", "last", "max"))]
        for name, values in server.items()
    ]
    return f"<details>{html_table(['metric', 'first', 'last', 'max'], rows)}</details>"
