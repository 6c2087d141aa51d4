"""Tables on the terminal, and whole where they go to a file or a pipe."""

from __future__ import annotations

import sys
from datetime import datetime

from rich.console import Console
from rich.table import Table

WIDTH = 200
"""Columns where there is no terminal; rich would take 80 and cut what doesn't fit."""


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal is."""
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)


def local_time(moment: str | None) -> str:
    """Return a moment of the API's JSON in local time with its zone; '-' where there is none."""
    if moment is None:
        return "-"
    return f"{datetime.fromisoformat(moment).astimezone():%Y-%m-%d %H:%M:%S %Z}"
