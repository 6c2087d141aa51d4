"""How commands end: the one place that prints an error and chooses the exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console

FAILED = 1
"""What was asked was done, or tried, and failed."""
BAD_INPUT = 2
"""What was asked can't be done as it was asked; click's usage errors have this code, too."""
INTERRUPTED = 130
"""Ctrl-C or SIGTERM ended the command."""


def say(line: str) -> None:
    """Print one line for people, beside the command's results."""
    Console(stderr=True, highlight=False).print(line, markup=False, soft_wrap=True)


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Print an error and end the command with this exit code."""
    say(f"loraplex: {message}")
    sys.exit(code)


@contextmanager
def ending_on(*errors: type[Exception]) -> Iterator[None]:
    """End the command with its message and `BAD_INPUT` if one of these errors is raised.

    Ctrl-C ends it with `INTERRUPTED`.
    """
    try:
        yield
    except errors as error:
        fail(str(error), BAD_INPUT)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
