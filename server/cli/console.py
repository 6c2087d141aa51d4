"""Ends commands: prints an error and chooses the exit code. No other module does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console

FAILED = 1
"""The command was run, and it failed or found a fault."""
BAD_INPUT = 2
"""The command can't be run as asked. click's usage errors have this code, too."""
INTERRUPTED = 130
"""Ctrl-C or SIGTERM ended the command."""


def say(line: str) -> None:
    """Print one line to the standard error, apart from the command's results."""
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
