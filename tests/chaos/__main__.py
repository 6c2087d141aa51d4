"""`make chaos`: makes every fault, or those that are named, and prints a table of what came of it.

python -m tests.chaos [FAULT]... : each by its class's name, with a number of rounds if wanted,
as `Failover` or `ServersKilled=50`. It ends with code 1 if a promise was broken.

The servers are forked (`forked.py`). `multiprocessing` has each fork import the main module again,
here with torch, unless it is called `__main__.py`.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import traceback
from functools import partial
from pathlib import Path

from tests.chaos.fault import HEAD, Fault, Measured, measure
from tests.chaos.faults.buckets import BucketAway, BucketLies, BucketSlowOrFailing
from tests.chaos.faults.databases import (
    BackupRestored,
    DatabaseFrozen,
    DatabaseKilled,
    Failover,
)
from tests.chaos.faults.engines import EngineKilledOrStopped
from tests.chaos.faults.machines import ClockJumps, DiskFull, ServersKilled
from tests.chaos.faults.networks import Partition, ProxyKilled
from tests.chaos.faults.upgrades import (
    FirstReleaseUpgraded,
    LaterReleaseRolledBack,
    Upgraded,
)

FAULTS: tuple[type[Fault], ...] = (
    DatabaseKilled,
    DatabaseFrozen,
    Failover,
    BackupRestored,
    Partition,
    BucketAway,
    BucketSlowOrFailing,
    BucketLies,
    DiskFull,
    ClockJumps,
    ProxyKilled,
    Upgraded,
    LaterReleaseRolledBack,
    FirstReleaseUpgraded,
    EngineKilledOrStopped,
    ServersKilled,
)


def main(names: list[str]) -> int:
    """Make the faults with these names, or all; return the exit code."""
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(1 << 30)))
    by_name = {fault.__name__: fault for fault in FAULTS}
    wanted = [each.partition("=") for each in names or by_name]
    if unknown := [name for name, _, _ in wanted if name not in by_name]:
        print(f"there is no {', '.join(unknown)}; there are {', '.join(by_name)}")
        return 2
    print(f"CHAOS_SEED={seed}", flush=True)
    done = [_measured(by_name[name](), int(rounds or 0), seed) for name, _, rounds in wanted]
    print("\n" + HEAD)
    for measured in done:
        print(measured.row())
    return 0 if all(measured.is_kept for measured in done) else 1


def _measured(fault: Fault, rounds: int, seed: int) -> Measured:
    print(f"{fault.name}: {rounds or fault.rounds} rounds", flush=True)
    with tempfile.TemporaryDirectory(prefix="loraplex-chaos-") as folder:
        try:
            say = partial(print, flush=True)
            measured = measure(fault, Path(folder), rounds or fault.rounds, seed, say)
        except Exception as error:
            traceback.print_exc()
            measured = Measured(fault, broken=[f"not run: {error!r}"])
        if measured.broken:
            for log in sorted(Path(folder).glob("*/log")):
                print(f"--- {log}", *log.read_text().splitlines()[-40:], sep="\n")
    for each in (*measured.broken, *measured.answers.failed[:20], *measured.answers.wrong[:20]):
        print(f"    BROKEN {each}", flush=True)
    print(
        f"    {measured.num_retries} changes repeated, {measured.num_refused} answers of changed "
        f"adapters refused, slowest answer {measured.answers.slowest_seconds:.1f} s\n"
        f"{measured.row()}",
        flush=True,
    )
    return measured


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
