"""What a check of this machine found."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Severity(enum.StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    """The server starts, and something works less well than it could."""
    PROBLEM = "problem"
    """The server doesn't start, or fails requests."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    severity: Severity
    subject: str
    """What was looked at, such as `disk`."""
    text: str
    remedy: str = ""
    """What to do. Empty if nothing is wrong, or if the text says it."""


def ok(subject: str, text: str) -> Finding:
    """Return a finding that needs no action."""
    return Finding(Severity.OK, subject, text)


def warning(subject: str, text: str, remedy: str = "") -> Finding:
    """Return a finding with which the server starts."""
    return Finding(Severity.WARNING, subject, text, remedy)


def problem(subject: str, text: str, remedy: str = "") -> Finding:
    """Return a finding with which the server doesn't start, or fails requests."""
    return Finding(Severity.PROBLEM, subject, text, remedy)
