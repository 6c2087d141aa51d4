"""Tests that can go on for longer: `make test-long` sets LONG=1, and runs their long forms.

In `make test` each of them does as much as shows a mistake soon; a rare one may need more.
"""

from __future__ import annotations

import os

LONG = os.environ.get("LONG") == "1"


def examples(number: int) -> int:
    """Return how many examples a property is tried with: all of them, or a quarter in the suite."""
    return number if LONG else -(-number // 4)
