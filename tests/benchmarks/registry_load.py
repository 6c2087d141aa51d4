"""What servers ask of the registry's PostgreSQL when nothing happens, and when something does.

    python -m tests.benchmarks.registry_load

Starts a PostgreSQL of its own (Debian's package `postgresql`) beside this process, fills it with
10,000 adapters of three versions, and prints two tables. The statements are the server's own, the
clients' Python included: one processor asks, another answers.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.store import ContentStore
from adapters_registry.records.aliases import point_alias
from adapters_registry.records.catalog import Target
from adapters_registry.records.tables import now
from adapters_registry.records.usage.consumption import Consumption, hour_of
from adapters_registry.records.usage.recording import add_usage
from adapters_registry.registry import Registry
from tests.benchmarks.registry import NUM_ADAPTERS, NUM_VERSIONS, SMOLLM2, fill, timed
from tests.postgres import Postgres, programs

SECONDS = 2.0
CONNECTIONS = (1, 4, 12)


def main() -> None:
    """Measure and print."""
    folder = programs()
    if folder is None:
        raise SystemExit("PostgreSQL isn't installed (Debian's package postgresql)")
    server = Postgres(folder)
    try:
        with tempfile.TemporaryDirectory() as directory:
            for table in measure(server.new_database(), Path(directory)):
                Console().print(table)
    finally:
        server.stop()


def measure(url: str, directory: Path) -> tuple[Table, Table]:
    """Times, and sizes of tables."""
    base = BaseSpec.from_config("SmolLM2-135M", SMOLLM2, max_rank=16)

    def opened(name: str) -> Registry:
        return Registry(url, ContentStore(directory / name), base)

    here = opened("here")
    fill(here)
    with get_context("spawn").Pool(1) as new_process:
        seconds, mib = new_process.apply(start, (url, directory / "new"))
    rows = {
        "start: read everything": _milliseconds(seconds),
        "its copy in memory": f"{mib:.0f} MiB",
    }
    other = opened("other")
    for number in CONNECTIONS:
        rows[f"polls a second, {number} connections"] = f"{polls(other, number):.0f}"
    versions = iter([2, 3] * 50)

    def promote() -> None:
        targets = [Target(next(versions), 100)]
        here.apply(point_alias, "default", "adapter-05000", "live", targets)

    changes, follows = [], []
    for _ in range(20):
        changes.append(timed(promote, 1))
        follows.append(timed(other.refresh, 1))
    rows["a promotion, one after the other"] = _milliseconds(median(changes))
    rows["another server takes it in"] = _milliseconds(median(follows))
    rows["usage of 1,000 adapters is recorded"] = _milliseconds(timed(lambda: use(here), 1))
    table = Table("PostgreSQL, one server", "")
    for what, value in rows.items():
        table.add_row(what, value)
    sizes = table_sizes(here)
    here.close()
    other.close()
    return table, sizes


def start(url: str, folder: Path) -> tuple[float, float]:
    """What a server's first look costs: seconds, and MiB of its memory."""
    base = BaseSpec.from_config("SmolLM2-135M", SMOLLM2, max_rank=16)
    started, before = time.perf_counter(), _resident_mib()
    registry = Registry(url, ContentStore(folder), base)
    found = time.perf_counter() - started, _resident_mib() - before
    registry.close()
    return found


def polls(registry: Registry, number: int) -> float:
    """Looks at an unchanged registry, a second, by so many threads with a connection each."""
    counts, until = [0] * number, time.monotonic() + SECONDS

    def poll(index: int) -> None:
        while time.monotonic() < until:
            with registry.session() as session:
                session.execute(text("SELECT value FROM epoch"))
            counts[index] += 1

    _together([lambda index=index: poll(index) for index in range(number)])  # type: ignore[misc]
    return sum(counts) / SECONDS


def _together(works: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def use(registry: Registry) -> None:
    """What a server writes every ten seconds, at most: a row for each adapter that it served."""
    hour = hour_of(now())
    used = {(hour, "id", "default", f"default/{n:05}"): Consumption(1) for n in range(1_000)}
    with registry.session() as session:
        add_usage(session, used)


def table_sizes(registry: Registry) -> Table:
    """With indexes."""
    query = text(
        "SELECT relname, n_live_tup, pg_total_relation_size(relid) FROM pg_stat_user_tables "
        "ORDER BY 3 DESC LIMIT 5"
    )
    shape = f"{NUM_ADAPTERS} adapters of {NUM_VERSIONS} versions"
    table = Table("table", "rows", "MiB with indexes", title=shape)
    with registry.session() as session:
        session.execute(text("ANALYZE"))
    with registry.session() as session:
        for name, rows, size in session.execute(query):
            table.add_row(name, str(rows), f"{size / 2**20:.1f}")
    return table


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


if __name__ == "__main__":
    main()
