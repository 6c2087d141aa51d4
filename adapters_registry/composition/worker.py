"""The process of `process.py`: `python -m adapters_registry.composition.worker`."""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

MEMORY_BYTES = 4 << 30
"""What one sum may take, besides the libraries. The matrices of one module take most of it."""
_LOWEST_PRIORITY = 19


def main() -> int:
    """Read a task from stdin, write the sum, and print how far it is from the exact one."""
    task = json.load(sys.stdin)
    os.nice(_LOWEST_PRIORITY)
    os.putenv("OPENBLAS_NUM_THREADS", "1")  # numpy's library reads it when it is loaded
    from adapters_registry.composition.weighted_sum import Part, WeightedSum

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY_BYTES,) * 2)
    parts = [Part(Path(directory), weight) for directory, weight in task["parts"]]
    try:
        error = WeightedSum(parts, task["rank"]).write(
            Path(task["directory"]), task["base_model"], task["metadata"]
        )
        answer: dict[str, object] = {"total": error.total, "by_layer": error.by_layer}
    except MemoryError:
        answer = {"memory": MEMORY_BYTES}
    except OSError as failure:
        answer = {"errno": failure.errno}
    print(json.dumps(answer))
    return 0


def _address_space() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    sys.exit(main())
