"""Reads runs back from the folders of their reports."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.errors import LoadTestError
from loadtest.outcome.request_outcome import OK
from loadtest.report.report import REQUESTS, SUMMARY


@dataclass(frozen=True)
class Request:
    """A row of `requests.csv`. Times are in milliseconds, except `at_seconds`."""

    at_seconds: float
    model: str
    tier: str
    status: str
    input_tokens: int
    output_tokens: int
    ttft_ms: float | None
    tpot_ms: float | None
    e2e_ms: float

    @property
    def ok(self) -> bool:
        """Return whether it was answered in full."""
        return self.status == OK

    @property
    def done_seconds(self) -> float:
        """Return when the last byte came, in seconds from the start of the run."""
        return self.at_seconds + self.e2e_ms / 1000


@dataclass(frozen=True)
class Recorded:
    """A run: its summary, and all of its requests by time, with those of the warm-up."""

    summary: dict[str, Any]
    requests: list[Request]

    @property
    def warmup_seconds(self) -> float:
        """Return how many seconds at the start aren't counted."""
        return float(self.summary["scenario"]["warmup_seconds"])

    def counted(self) -> list[Request]:
        """Return the requests that were due after the warm-up."""
        return [r for r in self.requests if r.at_seconds >= self.warmup_seconds]


def read_run(directory: Path) -> Recorded:
    """Read the folder of a report.

    Raises:
        LoadTestError: it holds no run.
    """
    try:
        summary = json.loads((directory / SUMMARY).read_text())
        with (directory / REQUESTS).open(newline="") as file:
            requests = [_request(row) for row in csv.DictReader(file)]
        return Recorded(summary, sorted(requests, key=lambda request: request.at_seconds))
    except (OSError, ValueError, KeyError) as error:
        raise LoadTestError(f"{directory} has no run: {error}") from error


def _request(row: dict[str, str]) -> Request:
    def optional(column: str) -> float | None:
        return float(row[column]) if row[column] else None

    return Request(
        float(row["at_seconds"]),
        row["model"],
        row["tier"],
        row["status"],
        int(row["input_tokens"]),
        int(row["output_tokens"]),
        optional("ttft_ms"),
        optional("tpot_ms"),
        float(row["e2e_ms"]),
    )
