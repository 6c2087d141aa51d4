"""What ends a measurement before it has begun."""

from __future__ import annotations


class LoadTestError(Exception):
    """The server can't be measured; one line that says why."""
