"""Writes a weighted sum in a process of its own, which no request has to wait for.

Decompositions of large matrices take all processors and much memory. In the server's own process
they would delay every stream. The other process has the lowest priority, one thread, and a bound
on its memory, and it can be ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from adapters_registry.composition.weighted_sum import FitError, Part
from adapters_registry.content.stopping import POLL_SECONDS, check_stop
from adapters_registry.errors import CannotCompose

MAX_SECONDS = 1800
"""How long one sum may take. Large ones take minutes on a busy machine."""


def write_apart(
    parts: Sequence[Part],
    rank: int | None,
    directory: Path,
    base_model: str,
    metadata: Mapping[str, str],
) -> FitError:
    """Do what `WeightedSum.write` does, in another process.

    Raises:
        OSError: it cannot be written.
        CannotCompose: it takes too long, or more memory than one sum may have.
        GivenUp: nobody waits for it any more. The process was ended.
    """
    task = {
        "parts": [[str(part.directory), part.weight] for part in parts],
        "rank": rank,
        "directory": str(directory),
        "base_model": base_model,
        "metadata": dict(metadata),
    }
    answer = json.loads(_run(json.dumps(task)))
    match answer:
        case {"total": total, "by_layer": by_layer}:
            return FitError(total, by_layer)
        case {"errno": number}:
            raise OSError(number, os.strerror(number))
        case {"memory": _}:
            raise CannotCompose(
                "adding these adapters takes more memory than one composition may have on a "
                "server: combine them elsewhere (`loraplex combine`)"
            )
    raise RuntimeError(f"no sum: {answer}")


def _run(task: str) -> str:
    command = [sys.executable, "-m", "adapters_registry.composition.worker"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=pipe)
    deadline = time.monotonic() + MAX_SECONDS
    given: str | None = task
    try:
        while True:
            try:
                answer, errors = process.communicate(given, timeout=POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                given = None
                check_stop()
                if time.monotonic() > deadline:
                    raise CannotCompose(
                        f"adding these adapters takes over {MAX_SECONDS} s on this server: give a "
                        "smaller --rank, or combine them elsewhere (`loraplex combine`)"
                    ) from None
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    if process.returncode:
        raise RuntimeError(f"the process that adds adapters failed: {errors[-2000:]}")
    return answer
