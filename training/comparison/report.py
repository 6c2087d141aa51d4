"""Writes a comparison as a table, a plot, and an HTML page with both."""

from __future__ import annotations

import base64
import html
from pathlib import Path

from training.comparison.recommendation import caveats, recommendation, to_json
from training.comparison.results import Comparison, Row, seconds_to_target

REPORT_JSON, REPORT_PNG, REPORT_HTML = "comparison.json", "comparison.png", "comparison.html"


def columns(comparison: Comparison) -> list[str]:
    """Return the names of the table's columns."""
    is_on_gpu = any(row.peak_gpu_memory_mib for row in comparison.rows)
    return [
        "arm",
        f"{comparison.metric} (seeds' deviation)",
        "behind the best (95 %)",
        "ROUGE-L",
        "perplexity",
        "rate",
        "trained",
        "peak GPU MiB" if is_on_gpu else "peak MiB",
        "s/step",
        "s to target",
        "artefact MB",
        "cost",
    ]


def table_rows(comparison: Comparison, price_per_hour: float | None = None) -> list[list[str]]:
    """Return the table's cells, a row for each arm. A dash stands for a missing value.

    The target in "s to target" is the lowest validation loss that every trained arm has reached.
    The column `cost` has the currency of `price_per_hour`.
    """
    lowest = [min(loss for _, loss in row.validation) for row in comparison.rows if row.validation]
    target = max(lowest, default=0.0)
    return [_cells(row, comparison, target, price_per_hour) for row in comparison.rows]


def _cells(row: Row, comparison: Comparison, target: float, price: float | None) -> list[str]:
    summary = row.scores.summary()
    quality = f"{row.scores.mean(comparison.metric):.3f}"
    gap = comparison.behind_best.get(row.name)
    behind = "" if gap is None else f"{gap.mean:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"
    common = [f"{summary['rouge_l']:.3f}", f"{summary['perplexity']:.3f}"]
    if row.learning_rate is None:
        return [row.name, quality, behind or "best", *common, *["-"] * 7]
    reached = seconds_to_target(row, target)
    return [
        row.name,
        f"{quality} ({row.spread(comparison.metric):.3f})",
        behind or "best",
        *common,
        f"{row.learning_rate:.2g}",
        f"{row.num_trainable / 1e6:.2f} M",
        f"{row.peak_mib:,.0f}",
        f"{row.seconds_per_step:.2f}",
        "-" if reached is None else f"{reached:.0f}",
        f"{row.artefact_bytes / 1e6:.1f}",
        "-" if price is None else f"{row.train_seconds / 3600 * price:.3f}",
    ]


def write_report(comparison: Comparison, out: Path, price_per_hour: float | None = None) -> None:
    """Write `comparison.json`, `comparison.png` and `comparison.html`."""
    (out / REPORT_JSON).write_text(to_json(comparison) + "\n", encoding="utf-8")
    _plot(comparison, out / REPORT_PNG)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns(comparison))
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>\n"
        for cells in table_rows(comparison, price_per_hour)
    )
    image = base64.b64encode((out / REPORT_PNG).read_bytes()).decode()
    notes = "".join(f"<p>{html.escape(caveat)}</p>\n" for caveat in caveats(comparison))
    page = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Which method</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto }}
table {{ border-collapse: collapse }} td, th {{ border-bottom: 1px solid #ccc; padding: .3rem .6rem;
text-align: left }} img {{ max-width: 100% }}
</style>
<h1>Which method</h1>
<p><strong>{html.escape(recommendation(comparison))}</strong></p>
{notes}<p>{comparison.num_examples} held-out examples, {comparison.num_seeds} seeds; intervals by
the paired bootstrap over examples and seeds.</p>
<table><tr>{head}</tr>
{body}</table>
<p><img alt="Quality of each arm, and validation loss over time"
src="data:image/png;base64,{image}"></p>
</html>
"""
    (out / REPORT_HTML).write_text(page, encoding="utf-8")


def _plot(comparison: Comparison, file: Path) -> None:
    """Draw the scores of each arm, with seeds as points, and the validation loss over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    quality, pace = figure.subplots(1, 2)
    names = [row.name for row in comparison.rows]
    quality.bar(names, [row.scores.mean(comparison.metric) for row in comparison.rows], alpha=0.6)
    for place, row in enumerate(comparison.rows):
        seeds = row.by_seed(comparison.metric) if row.method else []
        quality.plot([place] * len(seeds), seeds, "k.")
        if row.validation:
            pace.plot(*zip(*row.validation, strict=True), "o-", label=row.name)
    quality.set(ylabel=comparison.metric)
    quality.tick_params(axis="x", rotation=20)
    pace.set(xlabel="seconds of training", ylabel="validation loss", yscale="log")
    if pace.lines:
        pace.legend()
    figure.savefig(file, dpi=110)
