"""Runs read back from the folders that reports were written to."""

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
    """A line of `requests.csv`; times in milliseconds but for `at_seconds`."""

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
        """Whether it was answered in full."""
        return self.status == OK

    @property
    def done_seconds(self) -> float:
        """When the last byte came."""
        return self.at_seconds + self.e2e_ms / 1000


@dataclass(frozen=True)
class Recorded:
    """A run: its summary, and its requests by time, those of the warm-up too."""

    summary: dict[str, Any]
    requests: list[Request]

    @property
    def warmup_seconds(self) -> float:
        """What isn't counted."""
        return float(self.summary["scenario"]["warmup_seconds"])

    def counted(self) -> list[Request]:
        """The requests after the warm-up."""
        return [r for r in self.requests if r.at_seconds >= self.warmup_seconds]


def read_run(directory: Path) -> Recorded:
    """Read a report's folder.

    Raises:
        LoadTestError: there is no run in it.
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
