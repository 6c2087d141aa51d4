"""`loraplex loadtest capacity`: forecasts for settings, and how far the simulation is off."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from loadtest.capacity.fit import Forecast, arrivals_of, fit, forecast, measured, resident_at_first
from loadtest.capacity.simulation import Arrival, Setting
from loadtest.errors import LoadTestError
from loadtest.outcome.golden import name_of
from loadtest.plan.arrivals import read_trace
from loadtest.plan.scenario import Trace
from loadtest.report.recorded import Recorded

DEFAULT_SLOTS, HOST_TO_SLOTS = 16, 4
"""Guesses where the report doesn't say: the slots of a server on CPU, and how many times as many
versions fit its host memory."""
_COLUMNS = ("slots", "host", "replicas", "in slot", "in host", "TTFT P50", "TTFT P99", "E2E P99")


def report(
    run: Recorded,
    ran_with: Sequence[int] | None,
    slots: Sequence[int] | None,
    host: Sequence[int] | None,
    replicas: Sequence[int],
    trace: Path | None,
) -> Iterator[Table | str]:
    """Yield a table of forecasts, then the simulation of the run itself beside the run.

    Raises:
        LoadTestError: the run is too short, or the trace can't be used.
    """
    own = _own_setting(run, ran_with)
    model, recorded = fit(run), arrivals_of(run, _base(run))
    asked = recorded if trace is None else _arrivals(trace, recorded)
    resident = resident_at_first(run)
    table = Table(*_COLUMNS, title="simulated; times in ms, shares of the adapters' requests")
    for count, cache, number in itertools.product(
        slots or sorted({max(1, own.max_loras // 2), own.max_loras, own.max_loras * 2}),
        host or [own.host_cache],
        replicas,
    ):
        table.add_row(*_cells(forecast(asked, Setting(count, cache, number), model, resident)))
    yield table
    check = Table(
        "this run", *_COLUMNS[3:], title="the simulation against the run that it was fitted to"
    )
    simulated, real = forecast(recorded, own, model, resident), measured(run, own)
    check.add_row("simulated", *_cells(simulated)[3:])
    check.add_row("measured", *_cells(real)[3:])
    check.add_row("error", *_errors(simulated, real))
    yield check
    yield error_line(simulated, real)
    if not any(request.tier for request in run.requests):
        yield "the run doesn't record tiers (x-adapter-tier): loads are assumed to take no time"


def _own_setting(run: Recorded, ran_with: Sequence[int] | None) -> Setting:
    if ran_with is not None:
        if len(ran_with) != 2:
            raise LoadTestError("--ran-with takes slots and host cache, such as 8,32")
        return Setting(ran_with[0], ran_with[1])
    flags = list(run.summary["scenario"]["server_flags"])
    given = dict(itertools.pairwise(flags))
    slots = int(given.get("--max-loras", DEFAULT_SLOTS))
    return Setting(slots, int(given.get("--max-cpu-loras", HOST_TO_SLOTS * slots)))


def _base(run: Recorded) -> str:
    return str(run.summary["base"])


def _arrivals(trace: Path, recorded: Sequence[Arrival]) -> list[Arrival]:
    """Read a trace. What it leaves out is taken from the run's requests, one after the other."""
    like = itertools.cycle(recorded)
    rows = zip(read_trace(Trace(process="trace", file=trace)), like, strict=False)
    return [
        Arrival(
            row.at,
            name_of(row.model) if row.model else other.adapter,
            row.input_tokens or other.tokens_in,
            row.output_tokens or other.tokens_out,
        )
        for row, other in rows
    ]


def _cells(found: Forecast) -> list[str]:
    setting = found.setting
    shares = [f"{share:.1%}" for share in (found.slot_hits, found.host_hits)]
    times = [f"{value:.0f}" for value in (found.ttft_p50, found.ttft_p99, found.e2e_p99)]
    sizes = [str(size) for size in (setting.max_loras, setting.host_cache, setting.replicas)]
    return [*sizes, *shares, *times]


def error_line(simulated: Forecast, real: Forecast) -> str:
    """Return in one line how far off the simulation of the run itself is."""
    rows = zip(
        _COLUMNS[3:],
        _errors(simulated, real),
        _cells(simulated)[3:],
        _cells(real)[3:],
        strict=True,
    )
    parts = [f"{name} {off} ({made} / {had})" for name, off, made, had in rows if had != "nan%"]
    return f"error (simulated / measured): {', '.join(parts)}"


def _errors(simulated: Forecast, real: Forecast) -> list[str]:
    points = [
        f"{(a - b) * 100:+.1f} points"
        for a, b in ((simulated.slot_hits, real.slot_hits), (simulated.host_hits, real.host_hits))
    ]
    ratios = [
        f"{a / b - 1:+.0%}"
        for a, b in (
            (simulated.ttft_p50, real.ttft_p50),
            (simulated.ttft_p99, real.ttft_p99),
            (simulated.e2e_p99, real.e2e_p99),
        )
    ]
    return [*points, *ratios]
