"""The processes that this one started."""

from __future__ import annotations

import contextlib

import psutil

KILL_SECONDS = 5.0


def kill_child_processes() -> None:
    """Kill all processes that this one started, and wait until they are gone."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(children, timeout=KILL_SECONDS)
