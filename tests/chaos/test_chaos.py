"""A fault under load. `make test-long` makes more of them, and `make chaos` all, many times."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from tests.chaos.fault import Fault, measure
from tests.chaos.faults.buckets import BucketLies
from tests.chaos.faults.databases import BackupRestored, Failover
from tests.chaos.faults.machines import ServersKilled
from tests.chaos.faults.networks import Partition
from tests.long_form import LONG
from tests.postgres import programs

FAULTS: tuple[tuple[type[Fault], int], ...] = ((ServersKilled, 2),)
if LONG:
    FAULTS = (
        (BackupRestored, 1),
        (BucketLies, 3),
        (Failover, 2),
        (Partition, 1),
        (ServersKilled, 5),
    )


@pytest.mark.parametrize(("kind", "rounds"), FAULTS, ids=lambda x: getattr(x, "__name__", ""))
def test_a_fault(kind: type[Fault], rounds: int, tmp_path: Path) -> None:
    if programs() is None:
        pytest.skip("PostgreSQL isn't installed (Debian's package postgresql)")
    if kind is Partition and (os.getuid() != 0 or not shutil.which("ip")):
        pytest.skip("only root may make network namespaces")
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(1 << 30)))
    measured = measure(kind(), tmp_path, rounds, seed)
    assert measured.is_kept, (f"CHAOS_SEED={seed}", measured)
    assert measured.rounds == rounds
    assert measured.answers.num_whole > 0
    assert measured.num_changes > 0
