"""Plots a run as SVG: latency CDFs, timeline, adapters, throughput against concurrency."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from loadtest.outcome.golden import name_of
from loadtest.outcome.request_outcome import Outcome
from loadtest.outcome.run_record import ChurnRecord

WIDTH_INCHES = 9.0
MAX_ADAPTERS = 40
NUM_BINS = 60
MIN_HEAT_MAP_INCHES = 2.6
"""The colour bar's label is as long as this, and a lower figure would cut it."""


class ChangeStyle(NamedTuple):
    """How a change of the registry is drawn, and what the legend calls it."""

    colour: str
    colour_name: str
    word: str


CHANGES = {
    "registration": ChangeStyle("tab:green", "green", "registered"),
    "promotion": ChangeStyle("tab:blue", "blue", "promoted"),
    "rollback": ChangeStyle("tab:orange", "orange", "rolled back"),
    "retirement": ChangeStyle("tab:red", "red", "retired"),
    "failed": ChangeStyle("black", "black", "failed"),
}


def latency_cdfs(answered: Sequence[Outcome]) -> str:
    """Plot the share of requests answered within a time, to the first token and to the end.

    There is a line for each tier, if tiers are known.
    """
    figure, (left, right) = _figure(3.5, 2)
    tiers = sorted({outcome.tier for outcome in answered if outcome.tier})
    for axes, title in ((left, "first token"), (right, "end to end")):
        for tier in ("", *tiers):
            chosen = [o for o in answered if tier in ("", o.tier)]
            seconds = [o.ttft if axes is left else o.e2e for o in chosen]
            values = np.sort([s * 1000 for s in seconds if s is not None])
            if len(values):
                share = np.arange(1, len(values) + 1) / len(values)
                axes.step(values, share, where="post", label=tier or "all")
        axes.set(xscale="log", xlabel="ms", title=title, ylim=(0, 1.01))
        _plain_ticks(axes.xaxis)
        axes.grid(alpha=0.3)
        if tiers:
            axes.legend(fontsize=8)
    return _svg(figure)


def timeline(outcomes: Sequence[Outcome], churn: Sequence[ChurnRecord], seconds: float) -> str:
    """Plot tokens and errors a second and first-token times over the run, and changes as lines."""
    figure, (top, bottom) = _figure(5, 1, rows=2)
    edges = np.linspace(0, max(seconds, 1e-3), NUM_BINS + 1)
    width = edges[1]
    ok = [outcome for outcome in outcomes if outcome.ok]
    tokens, _ = np.histogram([o.done for o in ok], edges, weights=[o.tokens_out for o in ok])
    failed, _ = np.histogram([o.done for o in outcomes if o.is_error], edges)
    top.step(edges[:-1], tokens / width, where="post", label="tokens/s")
    top.step(edges[:-1], failed / width, where="post", color="tab:red", label="errors/s")
    top.set(ylabel="per second", xlim=(0, edges[-1]))
    top.legend(fontsize=8, loc="upper left")
    times = [(o.due, o.ttft * 1000) for o in ok if o.ttft is not None]
    if times:
        bottom.plot(*zip(*times, strict=True), ".", markersize=3, alpha=0.5)
    bottom.set(xlabel="s", ylabel="first token, ms", xlim=(0, edges[-1]), yscale="log")
    _plain_ticks(bottom.yaxis)
    for record in churn:
        for axes in (top, bottom):
            colour = CHANGES["failed" if record.error else record.kind].colour
            axes.axvline(record.done, color=colour, alpha=0.6, linewidth=1)
    return _svg(figure)


def adapter_heat_map(answered: Sequence[Outcome], seconds: float) -> str:
    """Plot the median first-token time of each adapter over the run, the busiest adapters first."""
    return _svg(adapter_figure(answered, seconds))


def adapter_figure(answered: Sequence[Outcome], seconds: float) -> Figure:
    """Return the figure of `adapter_heat_map`."""
    by_adapter: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in answered:
        by_adapter[name_of(outcome.model)].append(outcome)
    names = sorted(by_adapter, key=lambda name: -len(by_adapter[name]))[:MAX_ADAPTERS] or ["none"]
    bins = NUM_BINS // 2
    grid = np.full((len(names), bins), np.nan)
    for index, name in enumerate(names):
        cells: dict[int, list[float]] = defaultdict(list)
        for outcome in by_adapter[name]:
            if outcome.ttft is not None:
                cell = min(bins - 1, int(outcome.due / max(seconds, 1e-3) * bins))
                cells[cell].append(outcome.ttft * 1000)
        for cell, values in cells.items():
            grid[index, cell] = np.median(values)
    height = max(MIN_HEAT_MAP_INCHES, 1.2 + 0.16 * len(names))
    figure, (axes,) = _figure(height, 1)
    image = axes.imshow(grid, aspect="auto", extent=(0, seconds, len(names), 0))
    axes.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=7)
    axes.set(xlabel="s")
    figure.colorbar(image, label="median first token, ms")
    return figure


def throughput_by_concurrency(points: Sequence[tuple[float, float]]) -> str:
    """Plot tokens a second against the requests open at the time."""
    figure, (axes,) = _figure(3.5, 1)
    if points:
        axes.plot(*zip(*points, strict=True), "o", markersize=4)
    axes.set(xlabel="requests open", ylabel="tokens/s", xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    return _svg(figure)


def latency_by_load(points: Sequence[tuple[float, float]]) -> str:
    """Plot the P99 of the first token at each load of a sweep."""
    figure, (axes,) = _figure(3.5, 1)
    if points:
        axes.plot(*zip(*points, strict=True), "o-", markersize=4)
    axes.set(xlabel="load", ylabel="first token P99, ms", xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    return _svg(figure)


def concurrency_points(outcomes: Sequence[Outcome], seconds: float) -> list[tuple[float, float]]:
    """Return for each second of a run the requests open on average, and the tokens that came."""
    num = max(1, int(seconds))
    open_seconds, tokens = np.zeros(num), np.zeros(num)
    for outcome in outcomes:
        first, last = int(outcome.sent), min(num - 1, int(outcome.done))
        for second in range(first, last + 1):
            inside = min(outcome.done, second + 1) - max(outcome.sent, second)
            open_seconds[second] += max(0.0, inside)
        at = outcome.first
        for gap in [0.0, *outcome.gaps] if at is not None else []:
            at = (at or 0.0) + gap
            if int(at) < num:
                tokens[int(at)] += 1
    return [(float(c), float(t)) for c, t in zip(open_seconds, tokens, strict=True) if t]


def _plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis with 1, 2, 5, 10, ... in plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _figure(height_inches: float, columns: int, rows: int = 1) -> tuple[Figure, list[Axes]]:
    matplotlib.rcParams["svg.hashsalt"] = "loadtest"  # equal runs give equal pages
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=rows > 1, squeeze=False)
    return figure, [cell for row in axes for cell in row]


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
