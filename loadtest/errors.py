"""The error that ends a measurement."""

from __future__ import annotations


class LoadTestError(Exception):
    """The server can't be measured. The message is one line that says why."""
