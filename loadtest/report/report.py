"""Reports a run: a table and remarks for people, `summary.json` and `requests.csv` for programs."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.table import Table

from loadtest.outcome.request_outcome import WRONG, Outcome
from loadtest.outcome.run_record import Run
from loadtest.report.latencies import Latencies
from loadtest.report.measures import counted
from loadtest.report.slo import Objective

SUMMARY, REQUESTS, PAGE = "summary.json", "requests.csv", "report.html"
MAX_ROWS = 12
"""How many adapters the table shows. The files have all."""
_COLUMNS = ("p50", "p90", "p95", "p99", "p999", "max")
KINDS = {
    "ttft": "first token",
    "gap": "inter-token gap",
    "tpot": "time per output token",
    "e2e": "end to end",
    "queue": "queue in the client",
}
"""What people read instead of the names that `summary.json` has."""


def column_name(statistic: str) -> str:
    """Return what a statistic of `summary.json` is called in a table."""
    return {"count": "number", "p999": "p99.9"}.get(statistic, statistic)


def table(summary: dict[str, Any]) -> Table:
    """Return a table of latencies, of all requests and by group."""
    found = Table("ms", "number", *map(column_name, _COLUMNS))
    found.title = f"{summary['question']}\n{headline(summary)}"
    latency = summary["latency"]
    for kind, name in KINDS.items():
        found.add_row(name, *_cells(latency["all"][kind]))
    found.add_row("tester's lag", *_cells(summary["tester"]["lag"]))
    for group in ("tier", "tenant", "adapter"):
        members = latency[group]
        if len(members) < 2:
            continue
        found.add_section()
        busiest = sorted(members, key=lambda name: -members[name]["e2e"]["count"])
        for name in busiest[:MAX_ROWS]:
            found.add_row(f"first token, {group} {name}", *_cells(members[name]["ttft"]))
    return found


def _cells(values: dict[str, float]) -> Iterable[str]:
    yield str(values["count"])
    for column in _COLUMNS:
        yield f"{values[column]:.1f}" if column in values else ""


def headline(summary: dict[str, Any]) -> str:
    """Return the throughput in one line."""
    speed, requests = summary["throughput"], summary["requests"]
    return (
        f"{requests['ok']} of {requests['total']} requests in {summary['seconds']:.1f} s: "
        f"{speed['requests_per_second']:.2f} requests/s, "
        f"{speed['output_tokens_per_second']:.1f} tokens/s, "
        f"{speed['good_share']:.1%} within the goodput limits, "
        f"{requests['error_rate']:.2%} errors"
    )


def remarks(summary: dict[str, Any], objectives: list[Objective]) -> list[str]:
    """Return what a reader must know: errors, wrong answers, objectives, the tester's delay."""
    lines = [
        f"error {kind}: {error['count']} × ({error['example']})"
        for kind, error in summary["errors"].items()
    ]
    warmup = summary["warmup"]
    if not summary["requests"]["total"]:
        lines.append(
            "no request was due after the warm-up, within which "
            f"{warmup['ok']} of {warmup['total']} were answered"
        )
    truth = summary["truth"]
    if truth["checked"]:
        lines.append(
            f"truth: {truth['right']} of {truth['checked']} checked answers are their version's, "
            f"{truth['versions']} versions, tolerance {truth['tolerance']} nats; "
            f"{truth['indistinguishable_pairs_share']:.1%} of the pairs can't be told apart"
        )
    lines += [f"churn failed: {c['kind']}: {c['error']}" for c in summary["churn"] if c["error"]]
    for objective in objectives:
        met, value = objective.is_met(summary), objective.value(summary)
        shown = "no value" if value is None else f"{value:.4g}"
        lines.append(f"objective {objective.text}: {'met' if met else 'MISSED'} ({shown})")
    tester = summary["tester"]
    if tester["is_bottleneck"]:
        lines.append(
            f"the tester is the bottleneck: it lags {tester['lag'].get('p99', 0):.1f} ms (P99) and "
            f"takes {tester['cpu_share']:.0%} of a core; don't trust these latencies"
        )
    if not summary["complete"]:
        lines.append("the run was cut off: this is what there was by then")
    return lines


def has_passed(summary: dict[str, Any], objectives: list[Objective]) -> bool:
    """Return whether requests were answered, none wrongly, and every objective is met."""
    truth = summary["truth"]
    return (
        summary["requests"]["ok"] > 0
        and not any(truth[kind] for kind in WRONG)
        and all(objective.is_met(summary) for objective in objectives)
    )


def write(directory: Path, run: Run, summary: dict[str, Any]) -> None:
    """Write the JSON and the CSV."""
    directory.mkdir(parents=True, exist_ok=True)
    answered = [outcome for outcome in counted(run) if outcome.ok]
    histograms = {
        "ttft": Latencies(o.ttft for o in answered).encoded(),
        "gap": Latencies(gap for o in answered for gap in o.gaps).encoded(),
        "e2e": Latencies(o.e2e for o in answered).encoded(),
    }
    whole = summary | {"hdr_histograms_microseconds": histograms}
    (directory / SUMMARY).write_text(json.dumps(whole, indent=1) + "\n")
    with (directory / REQUESTS).open("w", newline="") as file:
        rows = csv.DictWriter(file, fieldnames=list(row(Outcome("", "", 0, 0, 0, 0))))
        rows.writeheader()
        rows.writerows(row(outcome) for outcome in run.outcomes)


def row(outcome: Outcome) -> dict[str, Any]:
    """Return a request as a row of the CSV. `at_seconds` is when it was due."""

    def ms(seconds: float | None) -> float | str:
        return "" if seconds is None else round(seconds * 1000, 3)

    return {
        "at_seconds": round(outcome.due, 6),
        "tenant": outcome.tenant,
        "model": outcome.model,
        "version": outcome.version,
        "tier": outcome.tier,
        "status": outcome.status,
        "input_tokens": outcome.tokens_in,
        "output_tokens": outcome.tokens_out,
        "lag_ms": ms(outcome.woken - outcome.due),
        "queue_ms": ms(outcome.sent - outcome.woken),
        "ttft_ms": ms(outcome.ttft),
        "tpot_ms": ms(outcome.tpot),
        "max_gap_ms": ms(max(outcome.gaps, default=None)),
        "e2e_ms": ms(outcome.e2e),
        "detail": outcome.detail,
    }
