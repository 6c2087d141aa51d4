"""Prints tables on the terminal. In a file or a pipe they aren't cut."""

from __future__ import annotations

import sys
from datetime import datetime

from rich.console import Console
from rich.table import Table

WIDTH = 200
"""Width in columns if there is no terminal. rich would take 80 and cut the rest."""


def print_table(table: Table) -> None:
    """Print a table, at most as wide as the terminal."""
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)


def local_time(moment: str | None) -> str:
    """Return a time of the API's JSON in local time with its zone, or '-' if there is none."""
    if moment is None:
        return "-"
    return f"{datetime.fromisoformat(moment).astimezone():%Y-%m-%d %H:%M:%S %Z}"
