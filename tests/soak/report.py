"""What a soak found: checks and slopes with their bounds, as a table and as JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from tests.soak.fleet import TENANTS
from tests.soak.golden import FURTHEST, SHORT_TOKENS, SHORT_TOLERANCE, TOLERANCE
from tests.soak.sampling import BOUNDS, HISTORY, SERIES_OF_AN_ADAPTER, Samples
from tests.soak.slopes import slope_of
from tests.soak.tally import Tally
from tests.soak.truth import Truth

RESULTS = Path(__file__).with_name("results.json")
"""The report of the last whole soak."""
MAX_SERIES = 160.0
"""Three histograms of about twelve series for each of four tiers, and counters by status code."""
MAX_ROWS_A_CHANGE = 2.0
"""The audit trail has an entry for each change, and a new version or adapter has a row."""
MAX_DATABASE_KIB_A_CHANGE = 8.0
MINUTE_SECONDS = 60.0
_GIB = 1 << 30


@dataclass(frozen=True)
class Check:
    """A number and its bound."""

    name: str
    value: float
    most: float

    @property
    def is_kept(self) -> bool:
        """Return whether the bound is kept."""
        return self.value <= self.most


@dataclass(frozen=True)
class Row:
    """A series and its slope."""

    name: str
    start: float
    end: float
    per_hour: float
    bound_per_hour: float
    is_flat: bool


@dataclass(frozen=True)
class Report:
    """All that is known after a soak."""

    command: str
    machine: str
    on: str
    seconds: float
    adapters: int
    counts: dict[str, str]
    checks: list[Check]
    rows: list[Row]
    faults: list[str] = field(default_factory=list)

    def failures(self) -> list[str]:
        """Return what is over its bound."""
        over = [f"{check.name}: {check.value:g}" for check in self.checks if not check.is_kept]
        return over + [f"{row.name} grows by {row.per_hour:g} an hour" for row in self.rows_over()]

    def rows_over(self) -> list[Row]:
        """Return the series that grow."""
        return [row for row in self.rows if not row.is_flat]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self)

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> Report:
        """Return the report that `to_json` gave."""
        lists = {
            "checks": [Check(**check) for check in values["checks"]],
            "rows": [Row(**row) for row in values["rows"]],
        }
        return cls(**{**values, **lists})

    def text(self) -> str:
        """Return the report as Markdown."""
        lines = [
            f"`{self.command}` on {self.on}: {self.adapters} adapters, "
            f"{self.seconds / MINUTE_SECONDS:.1f} minutes, on {self.machine}.",
            "",
            "| what | |",
            "|---|---|",
            *(f"| {name} | {count} |" for name, count in self.counts.items()),
            "",
            "| check | value | at most | |",
            "|---|---|---|---|",
        ]
        for check in self.checks:
            kept = "ok" if check.is_kept else "**failed**"
            lines.append(f"| {check.name} | {check.value:g} | {check.most:g} | {kept} |")
        lines += ["", "| series | start | end | an hour | bound | |", "|---|---|---|---|---|---|"]
        for row in self.rows:
            flat = "flat" if row.is_flat else "**grows**"
            lines.append(
                f"| {row.name} | {row.start:,.1f} | {row.end:,.1f} | {row.per_hour:+,.1f} | "
                f"{row.bound_per_hour:+,.0f} | {flat} |"
            )
        return "\n".join([*lines, *(f"\n{fault}" for fault in self.faults)])


@dataclass(frozen=True)
class Afterwards:
    """What is left when the clients have gone, and how the server ended."""

    leases: int
    """Leases that are still held."""
    engine_starts: float
    errors_in_log: int
    exit_code: int


def counts_of(tally: Tally, truth: Truth, load_average: float) -> dict[str, str]:
    """Return what was done, in words."""
    num_blind, num_pairs = truth.golden.num_blind()
    far = sorted(truth.distances) or [0.0]
    return {
        "requests answered in full": f"{tally.right:,}",
        "streams that the client left": f"{tally.left:,}",
        "429s that a quota promises": _listed(tally.refused),
        "by what was asked": _listed(tally.kinds),
        "by where the adapter was": _listed(tally.tiers),
        "changes": _listed(tally.changes),
        "answers compared with a golden one": f"{len(truth.distances):,}; off by {median(far):.3f} "
        f"nats on average in the median answer, {far[-1]:.3f} in the furthest; {TOLERANCE} are "
        f"allowed, {SHORT_TOLERANCE} in answers of fewer than {SHORT_TOKENS} tokens, and "
        f"{FURTHEST} where no other content's is nearer",
        "pairs of contents whose golden answers differ by less": f"{num_blind:,} of {num_pairs:,}",
        "load average of the machine": f"{load_average:.1f}",
    }


def checks_of(tally: Tally, samples: Samples, seconds: float, after: Afterwards) -> list[Check]:
    """Return the checks of what must not be."""
    changes = samples.rows[-1]["audit"] - samples.rows[0]["audit"]
    history = sum(samples.rows[-1][table] - samples.rows[0][table] for table in HISTORY)
    grown = samples.database_bytes[-1] - samples.database_bytes[0]
    return [
        Check("wrong answers", len(tally.wrong), 0),
        Check("failed requests", len(tally.failed), 0),
        Check("failed changes", len(tally.failed_changes), 0),
        *_quotas(tally, seconds),
        Check("leases held afterwards", after.leases, 0),
        Check("starts of the engine", after.engine_starts, 1),
        Check("errors in the server's log", after.errors_in_log, 0),
        Check("the server's exit code", abs(after.exit_code), 0),
        Check(SERIES_OF_AN_ADAPTER, round(samples.values[SERIES_OF_AN_ADAPTER][-1], 1), MAX_SERIES),
        Check("rows of history a change", round(history / max(1, changes), 2), MAX_ROWS_A_CHANGE),
        Check(
            "database KiB a change",
            round(grown / 1024 / max(1, changes), 2),
            MAX_DATABASE_KIB_A_CHANGE,
        ),
    ]


def _quotas(tally: Tally, seconds: float) -> list[Check]:
    """Return what tenants with rates got, beside what their quota allows in the whole time.

    A minute's worth may be taken at once at the beginning, and the last requests' tokens are
    booked when they end.
    """
    minutes = seconds / MINUTE_SECONDS + 1
    checks = []
    for tenant in TENANTS:
        if limit := tenant.quota.get("requests_per_minute"):
            admitted = tally.admitted[tenant.name]
            checks.append(Check(f"requests of {tenant.name}", admitted, round(limit * minutes)))
        if limit := tenant.quota.get("tokens_per_minute"):
            most = round(limit * minutes * 1.1)
            checks.append(Check(f"tokens of {tenant.name}", tally.tokens[tenant.name], most))
    return checks


def rows_of(samples: Samples) -> list[Row]:
    """Return the slope of each series with its bound. Raises `ValueError` after too few samples."""
    rows = []
    for name, bound in BOUNDS.items():
        slope = slope_of(samples.times, samples.values[name], bound)
        start, end, per_hour = (round(n, 2) for n in (slope.start, slope.end, slope.per_hour))
        rows.append(Row(name, start, end, per_hour, bound.per_hour, slope.is_flat))
    return rows


def machine() -> str:
    """Return what the soak ran on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(": ")[2] if names else model
    memory = psutil.virtual_memory().total / _GIB
    return f"{os.cpu_count()} CPUs ({model}) with {memory:.0f} GiB"


def today() -> str:
    """Return the date, in UTC."""
    return f"{datetime.now(UTC):%Y-%m-%d}"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())) or "none"
